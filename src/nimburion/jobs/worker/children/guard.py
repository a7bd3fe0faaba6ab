"""The guard of a child process (Linux): it ends all processes that the handlers have started.

A signal to the process group does not reach a program that has left the group (`setsid`, a daemon).
So the program of a child process forks at its start. The first process is the guard: orphans among
its descendants become its children (`PR_SET_CHILD_SUBREAPER`). When the child ends, or the worker
sends `KILL`, or the worker dies, the guard kills its children until none is left, and ends as the
child did. It runs no code of the application.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import NoReturn

KILL = signal.SIGUSR1
"""Tells a guard to kill the child and all its descendants."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_AWAITED = frozenset({KILL, signal.SIGCHLD})


def fork_from_guard(*descriptors: int) -> int | None:
    """Continue in a new process, which the process that called guards until all is over.

    Return the id of the guard; None where there is none: then it is the same process. Call it
    before the process has threads. `descriptors` are those of the child, which the guard closes.
    """
    if sys.platform != "linux" or not _control_process(_PR_SET_CHILD_SUBREAPER, 1):
        return None
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    guard = os.getpid()
    child = os.fork()
    if child:
        _guard(child, descriptors)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
    os.setsid()
    return guard


def _guard(child: int, descriptors: tuple[int, ...]) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the worker decides
        signal.signal(number, signal.SIG_IGN)
    _control_process(_PR_SET_PDEATHSIG, KILL)
    for descriptor in descriptors:
        os.close(descriptor)
    status = None
    while status is None and signal.sigwait(_AWAITED) != KILL:
        status = _collect_ended(child)
    ended = _kill_descendants(child)
    _end_as(ended if status is None else status)


def _collect_ended(child: int) -> int | None:
    """Collect the processes that have ended. Return the status of the child if it is among them.

    Raises `ChildProcessError` if there is no process.
    """
    found = None
    while True:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return found
        if process == child:
            return status


def _kill_descendants(child: int) -> int:
    """Kill until there is no child any more. Return the status of the child, 0 if unknown.

    The children of a killed process become children of this one.
    """
    found = 0
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    while True:
        for process in _list_children(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        try:
            process, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return found
        if process == child:
            found = status


def _list_children(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 (as few modules as possible)
        with suppress(OSError, ValueError, IndexError):
            process = int(name)
            with open(f"/proc/{process}/stat", "rb") as opened:  # noqa: PTH123
                fields = opened.read().rpartition(b")")[2].split()
            if int(fields[1]) == parent:
                found.append(process)
    return found


def _end_as(status: int) -> NoReturn:
    """End with the exit code of the child, or by the signal that ended it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has left a core dump
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _control_process(option: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
