"""The command line. `main` is the console script; each command group is one module of `commands/`.

Exit codes: 0 success, 1 the command failed, 2 invalid input (one line on standard error), 3 the
backend cannot be used, 4 no such job or schedule, 130 interrupted, 143 ended by SIGTERM before the
start (process 1 only).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import click

from nimburion.cli.exit_codes import report_error
from nimburion.cli.invocation import Invocation
from nimburion.cli.root import root


def main(
    arguments: Sequence[str] | None = None,
    *,
    invocation: Invocation | None = None,
    group: click.Group = root,
    program: str = "nimburion",
) -> None:
    """Run one command and exit with its code.

    `invocation` reads the configuration where a framework has settings of its own, `group` has its
    commands, and `program` is how users call it. Without `arguments`, those of the process are
    used, and the process belongs to the command.
    """
    if os.getpid() == 1:
        end_at_sigterm()
    given = list(arguments) if arguments is not None else None
    invocation = invocation or Invocation()
    invocation.owns_process = invocation.owns_process or arguments is None
    try:
        code = group.main(given, prog_name=program, standalone_mode=False, obj=invocation)
    except BaseException as error:  # noqa: BLE001 (every ending has its code; bugs are re-raised)
        code = report_error(error)
    sys.exit(code if isinstance(code, int) else 0)


def end_at_sigterm() -> None:
    """Exit with code 143 at SIGTERM, until a command installs a handler of its own.

    Process 1 of a container needs this: the kernel drops a signal that process 1 has no handler
    for. A worker that is stopped while it imports its application would otherwise run until it is
    killed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
