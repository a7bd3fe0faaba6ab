"""The command line. `main` is the console script; each command group is one module of this package.

Exit codes: 0 success, 1 the command failed, 2 invalid input (one line on standard error), 3 the
backend cannot be used, 4 no such job or schedule, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nimburion.cli.exit_codes import report_error
from nimburion.cli.root import root


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    given = list(arguments) if arguments is not None else None
    try:
        code = root.main(given, prog_name="nimburion", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 (every ending has its code; bugs are re-raised)
        code = report_error(error)
    sys.exit(code if isinstance(code, int) else 0)
