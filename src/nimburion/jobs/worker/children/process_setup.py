"""Set up a child process: its end with its parent, its signals and its output."""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from nimburion.jobs.worker.children.channel import EXIT_WITHOUT_PARENT

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
"""The signals that a child leaves to its parent."""

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "/proc/self/oom_score_adj"
_OOM_EXTRA = 500
_MAX_OOM_SCORE = 1000


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies (Linux).

    Elsewhere the thread that reads from the parent ends it.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(EXIT_WITHOUT_PARENT)


def prefer_for_oom_kill() -> None:
    """Let the kernel kill this process rather than its parent when memory runs out (Linux)."""
    with suppress(OSError, ValueError), open(_OOM_SCORE, "r+") as opened:  # noqa: PTH123
        score = min(_MAX_OOM_SCORE, int(opened.read()) + _OOM_EXTRA)
        opened.seek(0)
        opened.write(str(score))


def leave_signals_to_parent() -> None:
    """Let SIGTERM and SIGINT have no effect: the parent decides when a child ends.

    A service manager may send them to all processes. Programs that a handler starts get the default
    effect again, because these are functions and not `SIG_IGN`.
    """
    for number in SIGNALS:
        signal.signal(number, _do_nothing)


def prepare_output() -> None:
    """Write each line of output at once, and the stack of a crash (a segmentation fault) too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    faulthandler.enable(file=2)


def _do_nothing(_: int, __: FrameType | None) -> None:
    return
