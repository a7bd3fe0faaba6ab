"""A thread that detects a blocked event loop, and handles signals without the loop.

A handler that blocks (an `async def` that calls `time.sleep`) stops all activity of the loop: other
handlers, exchanges, and asyncio's own signal handlers. The watchdog schedules a callback on the
loop a few times a second. If the callback does not run in time, the watchdog logs which code blocks
and degrades the health. It also releases the jobs that have not started, on the connection of the
heartbeat.

Signals arrive in two ways. The interpreter writes their numbers to a socket that the watchdog
reads, even while the main thread runs C code. A Python handler runs in the main thread, when that
thread runs Python code. Both count the same signals, so the larger count is correct.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from nimburion.jobs.worker.join_thread import join_thread

if TYPE_CHECKING:
    from nimburion.jobs.worker.worker import Worker

_log = logging.getLogger("nimburion.worker")

_ExceptionInfo = tuple[type[BaseException], BaseException, Any] | tuple[None, None, None]
"""The result type of `sys.exc_info`."""

_CHECKS_PER_LIMIT = 4
"""The number of checks within `limit`. No callback for three checks means a blocked loop."""
_SIGNAL_CHECK_INTERVAL = 0.1
"""Seconds between two checks after a signal arrived."""
_SECOND_SIGNAL_TIMEOUT = 0.5
"""Seconds within which the loop must act on the second signal."""
_OVERTIME = 2.0
"""Seconds after the grace time until a blocked loop ends the process."""
_CLOSE_TIMEOUT = 2.0
"""The longest time in seconds to close the session of a process that ends."""
_LOG_TIMEOUT = 0.5
"""Seconds to wait for a log record. The blocked thread may hold a lock of logging."""
_RELEASE_INTERVAL = 1.0
"""Seconds between two releases of jobs that an exchange may deliver while the loop is blocked."""


class LoopWatchdog:
    """Watches the event loop of one worker. Use each instance once.

    Args:
        limit: seconds within which a blocked loop is detected, once it was started.
        grace: seconds that handlers may still run after the first signal.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: Worker,
        *,
        limit: float,
        grace: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._worker = worker
        self._limit = limit
        self._grace = grace
        self._monotonic = monotonic
        self._thread: threading.Thread | None = None
        self._reading: socket.socket | None = None
        self._writing: socket.socket | None = None
        self._watching = False
        self._stopping = False
        self._attached = False
        # State of the callback on the loop
        self._callback_sent_at: float | None = None
        self._late_checks = 0
        self._idle_checks = 0
        # State of a detected block
        self._blocked_since: float | None = None
        self._blocking_code = ""
        self._nonce: bytes | None = None
        self._released_at = -math.inf
        # Signals
        self._numbers: frozenset[int] = frozenset()
        self._on_signal: Callable[[], None] = lambda: None
        self._owns_process = False
        self._next_descriptor = -1
        self._read = 0
        self._handled = 0
        self._reported = 0
        self._first_at = self._second_at = math.inf
        self._last_signal = 0
        self._never = threading.Event()

    # Called on the loop

    def start(self) -> None:
        """Start to watch the loop."""
        self._start_thread()
        self._watching = True

    def _start_thread(self) -> None:
        if self._thread is None:
            self._reading, self._writing = socket.socketpair()
            self._writing.setblocking(False)  # noqa: FBT003 (its only argument)
            self._thread = threading.Thread(
                target=self._main, name="nimburion-loop-watchdog", daemon=True
            )
            self._thread.start()

    async def stop(self) -> None:
        """Stop watching; return when the thread has ended."""
        self._stopping = True
        if self._thread is not None:
            self._wake_thread()
            await join_thread(self._thread)
        self._close()

    def attach(
        self, signals: Collection[signal.Signals], on_signal: Callable[[], None], *, owns: bool
    ) -> Callable[[], None]:
        """Call `on_signal` on the loop for each of these signals. Main thread only.

        The returned function restores the previous handlers. If the loop does not act on the second
        signal within half a second, the process ends. With `owns`, the process also ends if the
        loop is still blocked after the grace time.
        """
        self._numbers, self._on_signal, self._owns_process = frozenset(signals), on_signal, owns
        self._start_thread()
        self._attached = True
        assert self._writing is not None
        descriptor = self._writing.fileno()
        self._next_descriptor = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._handle) for number in signals}

        def detach() -> None:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(self._next_descriptor)
            self._attached = False
            self._close()

        return detach

    @property
    def failure(self) -> BaseException | None:
        """An error that states what blocks the loop and for how long; None if it is not blocked."""
        since = self._blocked_since
        if since is None:
            return None
        seconds, code = self._monotonic() - since, self._blocking_code
        return RuntimeError(f"the event loop is blocked for {seconds:.1f} s by {code}")

    def _on_callback(self) -> None:
        sent_at, self._callback_sent_at = self._callback_sent_at, None
        if sent_at is not None:
            self._worker.vitals.note_loop_lag(self._monotonic() - sent_at)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Count a signal. This Python handler runs in the main thread, between two instructions.

        It must not log, because the interrupted code may hold a lock of logging.
        """
        self._handled += 1
        self._last_signal = number
        self._wake_thread()
        if self._blocked_since is not None and self._handled > 1:
            # The blocking code may hold the interpreter's lock for long. Sleep, so that the
            # watchdog can end the process.
            self._never.wait(_CLOSE_TIMEOUT)

    def _wake_thread(self) -> None:
        if self._writing is not None:
            with suppress(OSError):  # the buffer is full, so the thread wakes up anyway
                self._writing.send(b"\0")

    def _close(self) -> None:
        if self._stopping and not self._attached:
            for end in (self._reading, self._writing):
                if end is not None:
                    end.close()

    # Called on the watchdog's thread

    def _main(self) -> None:
        while not self._stopping:
            try:
                self._read_signals()
                self._check_loop()
            except Exception:  # noqa: BLE001 - the watchdog must continue
                if self._loop.is_closed():
                    break
                self._log_from_thread(
                    logging.ERROR, "a check of the event loop failed", failed=sys.exc_info()
                )
        if self._loop.is_closed():
            self._stopping = True
            self._close()

    def _read_signals(self) -> None:
        assert self._reading is not None
        self._reading.settimeout(self._choose_interval())
        try:
            data = self._reading.recv(4096)
        except TimeoutError:
            return
        signals = data.replace(b"\0", b"")
        mine = [number for number in signals if number in self._numbers]
        self._read += len(mine)
        self._last_signal = mine[-1] if mine else self._last_signal
        # The next descriptor is the loop's own: the loop may handle other signals.
        if signals and self._next_descriptor >= 0:
            with suppress(OSError):
                os.write(self._next_descriptor, signals)

    def _choose_interval(self) -> float:
        """Return the seconds between two checks."""
        usual = self._limit / _CHECKS_PER_LIMIT
        return min(_SIGNAL_CHECK_INTERVAL, usual) if self._reported else usual

    def _check_loop(self) -> None:
        now = self._monotonic()
        self._forward_signals(now)
        if self._callback_sent_at is None:
            self._end_block(now)
            self._schedule_callback(now)
        else:
            self._late_checks += 1
            enough = (
                (_CHECKS_PER_LIMIT - 1) * self._limit / _CHECKS_PER_LIMIT / self._choose_interval()
            )
            if self._watching and self._late_checks >= max(2, enough):
                self._on_blocked(now)
        if self._is_overdue(now):
            self._end_process()

    def _schedule_callback(self, now: float) -> None:
        """Schedule the callback on the loop: at each check while jobs run, else at every fourth."""
        busy = self._worker.running_count or self._worker.prefetched_count or self._reported
        self._idle_checks = 0 if busy else self._idle_checks + 1
        if busy or self._idle_checks >= _CHECKS_PER_LIMIT:
            self._idle_checks = self._late_checks = 0
            self._callback_sent_at = now
            self._loop.call_soon_threadsafe(self._on_callback)

    # A blocked loop

    def _on_blocked(self, now: float) -> None:
        if self._blocked_since is not None:
            self._release_jobs(now)
        else:
            self._blocking_code, stack = self._find_blocking_code()
            self._blocked_since = self._callback_sent_at or now
            count = self._release_jobs(now)
            self._log_from_thread(
                logging.WARNING,
                "the event loop is blocked by %s: write a plain `def` handler, or "
                "`await asyncio.to_thread(…)` around the blocking call. %d jobs that have not "
                "started are released",
                self._blocking_code,
                count,
                stack=stack,
            )

    def _end_block(self, now: float) -> None:
        since, self._blocked_since = self._blocked_since, None
        if since is not None:
            self._nonce = None
            self._log_from_thread(
                logging.WARNING, "the event loop runs again, after %.1f s", now - since
            )

    def _release_jobs(self, now: float) -> int:
        """Release the jobs that have not started; return how many leases are known.

        An exchange in flight may deliver more jobs at any time. So its leases are released
        repeatedly, by their nonce.
        """
        leases, nonce = self._worker.recall()
        self._nonce = nonce or self._nonce
        if leases or nonce or (self._nonce and now - self._released_at >= _RELEASE_INTERVAL):
            self._released_at = now
            self._worker.session.release(leases, self._nonce)
        return len(leases)

    def _find_blocking_code(self) -> tuple[str, str]:
        """Return a description of the code that blocks the loop, and its stack."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001
        stack = "" if frame is None else "".join(traceback.format_stack(frame))
        with suppress(RuntimeError):
            task = asyncio.current_task(self._loop)
            attempt = None if task is None else self._worker.find_attempt(task)
            if attempt is not None:
                lease, name = attempt.delivery.lease, attempt.delivery.name
                return f"job {lease.job_id} ({name})", stack
            if task is not None:
                return f"the task {task.get_name()}", stack
        return "code outside any job", stack

    # Signals

    def _forward_signals(self, now: float) -> None:
        """Schedule `on_signal` on the loop, once for each signal."""
        for count in range(self._reported + 1, max(self._read, self._handled) + 1):
            self._reported = count
            if count == 1:
                self._first_at = now
            elif count == 2:
                self._second_at = now
            self._loop.call_soon_threadsafe(self._on_signal)

    def _is_overdue(self, now: float) -> bool:
        """Return whether the loop had its time to stop, so that the process must end now."""
        callback_sent_at = self._callback_sent_at
        if callback_sent_at is None:
            return False
        if now - max(self._second_at, callback_sent_at) >= _SECOND_SIGNAL_TIMEOUT or (
            self._second_at <= now and self._blocked_since is not None
        ):
            return True
        late = now - self._first_at >= self._grace + _OVERTIME
        return self._owns_process and late and self._blocked_since is not None

    def _end_process(self) -> None:
        """Close the session, which releases its jobs, and end the process without the loop.

        After an abort, leave the session to expire, so that its jobs count as lost.
        """
        closed = not self._worker.is_aborted and self._worker.session.close_from_thread(
            _CLOSE_TIMEOUT
        )
        what = "its jobs are released" if closed else "its jobs count as lost when it expires"
        self._log_from_thread(
            logging.WARNING,
            "the event loop is blocked and cannot stop; the session ends, %s, and so does the "
            "process",
            what,
        )
        code = 0 if closed and self._owns_process else 128 + self._last_signal
        os._exit(code)

    def _log_from_thread(
        self,
        level: int,
        message: str,
        *args: object,
        stack: str = "",
        failed: _ExceptionInfo | None = None,
    ) -> None:
        """Log from a separate thread, because the blocked thread may hold a lock of logging."""

        def log() -> None:
            if _log.isEnabledFor(level):
                record = _log.makeRecord(
                    _log.name,
                    level,
                    __file__,
                    0,
                    message,
                    args,
                    failed,
                    sinfo=stack.rstrip() or None,
                )
                _log.handle(record)

        thread = threading.Thread(target=log, name="nimburion-watchdog-log", daemon=True)
        thread.start()
        thread.join(_LOG_TIMEOUT)
