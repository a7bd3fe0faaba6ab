"""Makes a process that is forked out of a worker a plain process.

A fork copies the worker's signal handlers, its wake-up descriptor, its event loop and its sockets.
A child that kept the handlers would ignore `terminate()`, or stop its parent through the shared
descriptor. A child whose code went back into the event loop would run the worker a second time, on
the same sockets.

So in the child, before any other code runs there:

- signals have their default effect again, and nothing of them reaches the parent;
- the copy of the event loop shares no selector with the parent, and does one thing when it is
  entered again: it ends the child, with the exit code that a plain process would have.

`os.register_at_fork` cannot be undone, so the hooks are installed once, by the first worker of the
process. They do nothing where no worker runs.
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

_WAITS = (
    "a process that was forked inside the event loop cannot await there; it ends now. "
    "Call os._exit() in the child, or use multiprocessing\n"
)


class ForkGuard:
    """Knows whether this process is a forked child of the one that runs the worker.

    Armed while the worker runs. Reading `in_child` costs no system call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self.in_child: bool = False
        """Whether this is a child of the worker's process. Nothing of the worker may go on here."""
        self.signals: frozenset[signal.Signals] = frozenset()
        """The signals that the worker handles."""

    def arm(self) -> None:
        """Watch for forks from now on. Repeatable."""
        _hooks.install()
        _hooks.guards.add(self)

    def disarm(self) -> None:
        """Watch no more. Repeatable."""
        _hooks.guards.discard(self)

    def check(self, error: BaseException | None) -> None:
        """Call where a handler has returned (`error` is None) or raised: ends a forked child.

        Does nothing in the worker's own process, nor where a coroutine is cancelled or closed:
        these come from the child's end, and are not what it ended with.
        """
        if self.in_child and not isinstance(error, asyncio.CancelledError | GeneratorExit):
            end_process(error)

    def enter_child(self, forking: _Forking) -> None:
        """Called in a new child."""
        self.in_child = True
        _reset_signals(self.signals)
        if self._loop is not None and forking.loop is self._loop:
            _close_loop_to_child(self._loop, forking.task)


class _Forking(threading.local):
    """What a thread that forks was doing."""

    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task[object] | None = None
    mask: Iterable[int | signal.Signals] | None = None


class _Hooks:
    """What happens around each fork of this process."""

    def __init__(self) -> None:
        self.guards: WeakSet[ForkGuard] = WeakSet()
        self._forking = _Forking()
        self._installed = False

    def install(self) -> None:
        if not self._installed:
            self._installed = True
            os.register_at_fork(
                before=self._before,
                after_in_parent=self._after_in_parent,
                after_in_child=self._after_in_child,
            )

    def _before(self) -> None:
        """Hold signals back, so that none reaches the child while it has the parent's handlers."""
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
    """Give these signals the effect that they have in a new Python process."""
    for number in signals:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
    signal.set_wakeup_fd(-1)


def _close_loop_to_child(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[object] | None
) -> None:
    """Let the copy of a running loop end the child as soon as it is entered."""
    _replace_selector(loop)
    loop.call_soon(_end_forked, task)
    # What was ready when the process was forked must not run here too: our call comes first. The
    # queue has no public name; both asyncio's loops and uvloop's refer to it, as to no other deque.
    for ready in gc.get_referents(loop, getattr(loop, "__dict__", None)):
        if isinstance(ready, deque):
            ready.rotate(1)


def _replace_selector(loop: asyncio.AbstractEventLoop) -> None:
    """Put an empty epoll in the place of the shared one: whatever the child registers or takes
    away there, it would do to its parent."""
    descriptor = _epoll_descriptor(loop)
    if descriptor is not None:
        with select.epoll() as own:
            os.dup2(own.fileno(), descriptor, inheritable=False)


def _epoll_descriptor(loop: asyncio.AbstractEventLoop) -> int | None:
    if not hasattr(select, "epoll"):  # a kqueue is not inherited
        return None
    selector = getattr(loop, "_selector", None)
    backend_id = getattr(loop, "_get_backend_id", None)  # uvloop's
    if selector is not None and hasattr(selector, "fileno"):
        return int(selector.fileno())
    return None if backend_id is None else int(backend_id())


def _end_forked(task: asyncio.Task[object] | None) -> None:
    """End the child by what became of the task that forked."""
    if task is None or not task.done():
        sys.stderr.write(_WAITS)
        end_process(SystemExit(1))
    end_process(None if task.cancelled() else task.exception())


def end_process(error: BaseException | None) -> NoReturn:
    """End this process as Python would after its last line, or with this error. Does not run what
    is registered at exit: that is the parent's."""
    code = 1
    try:
        code = _exit_code(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1
