"""Turns a process that is forked out of a worker into a plain process.

A fork copies the worker's signal handlers, its wake-up descriptor, its event loop and its sockets.
A child with these handlers would ignore `terminate()`, or stop its parent through the shared
descriptor. A child that returns to the event loop would run the worker a second time, on the same
sockets.

So two things happen in the child before any other code runs there:

- Signals have their default effect again, and no signal of the child reaches the parent.
- The copy of the event loop gets its own selector. When the child enters the loop again, the child
  ends, with the exit code of a plain process.

`os.register_at_fork` cannot be undone, so the first worker of the process installs the hooks once.
They have no effect while no worker runs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable
from typing import NoReturn
from weakref import WeakSet

_FORKED_CHILD_AWAITS = (
    "a process that was forked inside the event loop cannot await there; it ends now. "
    "Call os._exit() in the child, or use multiprocessing\n"
)


class ForkGuard:
    """Detects whether this process is a forked child of the worker's process.

    Active while the worker runs. Reading `in_child` costs no system call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self.in_child: bool = False
        """Whether this process is a child of the worker's process. No worker code may run here."""
        self.signals: frozenset[signal.Signals] = frozenset()
        """The signals that the worker handles."""

    def enable(self) -> None:
        """Start to watch for forks. Idempotent."""
        _hooks.install()
        _hooks.guards.add(self)

    def disable(self) -> None:
        """Stop watching for forks. Idempotent."""
        _hooks.guards.discard(self)

    def check(self, error: BaseException | None) -> None:
        """End the process if it is a forked child. Call this after a handler returned or raised.

        `error` is what the handler raised, or None. Does nothing in the worker's own process. Does
        nothing when a coroutine is cancelled or closed either: the end of the child causes that,
        and it does not determine the exit code.
        """
        if self.in_child and not isinstance(error, asyncio.CancelledError | GeneratorExit):
            end_process(error)

    def enter_child(self, forking: _Forking) -> None:
        """Reset signals and the event loop in a new child process."""
        self.in_child = True
        _reset_signals(self.signals)
        if self._loop is not None and forking.loop is self._loop:
            _close_loop_to_child(self._loop, forking.task)


class _Forking(threading.local):
    """The state of a thread at the time of its fork."""

    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task[object] | None = None
    mask: Iterable[int | signal.Signals] | None = None


class _Hooks:
    """The hooks that run around each fork of this process."""

    def __init__(self) -> None:
        self.guards: WeakSet[ForkGuard] = WeakSet()
        self._forking = _Forking()
        self._installed = False

    def install(self) -> None:
        if not self._installed:
            self._installed = True
            os.register_at_fork(
                before=self._prepare_fork,
                after_in_parent=self._after_in_parent,
                after_in_child=self._after_in_child,
            )

    def _prepare_fork(self) -> None:
        """Block signals, so that none reaches the child while it has the parent's handlers."""
        forking = self._forking
        forking.loop = forking.task = forking.mask = None
        signals = frozenset[signal.Signals]().union(*(guard.signals for guard in self.guards))
        if signals:
            forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        if self.guards:
            try:
                forking.loop = asyncio.get_running_loop()
                forking.task = asyncio.current_task()
            except RuntimeError:  # not on a loop's thread, or between two callbacks
                pass

    def _after_in_parent(self) -> None:
        self._let_signals_in()

    def _after_in_child(self) -> None:
        for guard in list(self.guards):
            guard.enter_child(self._forking)
        self.guards.clear()
        self._let_signals_in()

    def _let_signals_in(self) -> None:
        mask, self._forking.mask = self._forking.mask, None
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_hooks = _Hooks()


def _reset_signals(signals: Iterable[signal.Signals]) -> None:
    """Restore the effect that these signals have in a new Python process."""
    for number in signals:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
    signal.set_wakeup_fd(-1)


def _close_loop_to_child(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[object] | None
) -> None:
    """Make the copy of a running loop end the child as soon as the child enters the loop."""
    _replace_selector(loop)
    loop.call_soon(end_forked, task)
    # Callbacks that were ready at the fork must not run in the child, so `end_forked` goes first.
    # The queue of ready callbacks has no public name. asyncio's loops and uvloop's refer to no
    # other deque.
    for ready in gc.get_referents(loop, getattr(loop, "__dict__", None)):
        if isinstance(ready, deque):
            ready.rotate(1)


def _replace_selector(loop: asyncio.AbstractEventLoop) -> None:
    """Replace the shared epoll with an empty one.

    Otherwise the child would change the registrations of its parent.
    """
    descriptor = _find_epoll_descriptor(loop)
    if descriptor is not None:
        with select.epoll() as own:
            os.dup2(own.fileno(), descriptor, inheritable=False)


def _find_epoll_descriptor(loop: asyncio.AbstractEventLoop) -> int | None:
    if not hasattr(select, "epoll"):  # a kqueue is not inherited
        return None
    selector = getattr(loop, "_selector", None)
    backend_id = getattr(loop, "_get_backend_id", None)  # uvloop
    if selector is not None and hasattr(selector, "fileno"):
        return int(selector.fileno())
    return None if backend_id is None else int(backend_id())


def end_forked(task: asyncio.Task[object] | None) -> NoReturn:
    """End the child with the result of the task that forked."""
    if task is None or not task.done():
        sys.stderr.write(_FORKED_CHILD_AWAITS)
        end_process(SystemExit(1))
    end_process(None if task.cancelled() else task.exception())


def end_process(error: BaseException | None) -> NoReturn:
    """End this process as Python would after its last line, or with `error`.

    Does not run `atexit` functions: they belong to the parent.
    """
    code = 1
    try:
        code = _choose_exit_code(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _choose_exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1
