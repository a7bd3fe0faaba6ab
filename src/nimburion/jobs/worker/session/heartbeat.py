"""Renews a session: sends its heartbeats from a separate thread, on a separate connection.

So a handler that blocks the event loop does not lose a lease. The heartbeat also computes how long
the leases are valid: one time to live, less a margin, from the moment when the last answered
heartbeat was *sent*. The host's monotonic clock measures this. So the worker treats its leases as
expired before the backend does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendError, SessionLost
from nimburion.core.lease import Lease
from nimburion.core.service import wait_for_first
from nimburion.core.session import HeartbeatReply
from nimburion.core.timing.clock import Clock
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.join_thread import join_thread
from nimburion.jobs.worker.session.stack_requests import StackRequests
from nimburion.jobs.worker.session.vitals import VitalsReader

_log = logging.getLogger("nimburion.worker")

_HEARTBEATS_PER_TTL = 4
"""Heartbeats within one session TTL: two can be lost before the leases expire."""
_SAFETY_MARGIN = 0.1
"""The fraction of the TTL by which the worker treats its leases as expired before the backend does.
"""
_MAX_SILENT_INTERVALS = 1.5
"""Silence of more than this many intervals is an outage, not a late heartbeat."""


class Heartbeat:
    """The heartbeat of one session.

    `on_reply` receives the reply of each heartbeat. `on_end` is called once, when the session is
    lost or its leases have expired. Both are called on the event loop that runs the heartbeat.
    """

    def __init__(
        self,
        backend: Backend,
        session_id: str,
        ttl: float,
        clock: Clock,
        connectivity: BackendConnectivity,
        *,
        vitals: VitalsReader,
        stacks: StackRequests,
        on_reply: Callable[[HeartbeatReply], None],
        on_end: Callable[[], None],
    ) -> None:
        self._vitals = vitals
        self._stacks = stacks
        self._backend = backend
        self._session_id = session_id
        self._ttl = ttl
        self._clock = clock
        self._connectivity = connectivity
        self._on_reply = on_reply
        self._on_end = on_end
        self.interval: float = ttl / _HEARTBEATS_PER_TTL
        self._answered = 0.0
        self.lease_valid_until: float = 0.0
        """Monotonic time in seconds. Never later than the expiry in the backend."""
        self.fleet_size: int = 1
        """The number of workers that have sent a heartbeat lately, as the last reply says."""
        self.no_expiry_before: float = 0.0
        """Monotonic time in seconds before which no session expires, as the last reply says."""
        self._others_have_until = 0.0
        """Monotonic time in seconds until which other workers may send a heartbeat first.

        After silence (its own start, an outage) they get the time for one heartbeat.
        """
        self.ended: bool = False
        self._requested = asyncio.Event()
        self._handle: Backend | None = None
        self.begin(clock.monotonic())

    def begin(self, sent: float) -> None:
        """Note that the session was opened by a call sent at `sent` (monotonic seconds)."""
        self._note_answer(sent)
        self._others_have_until = sent + self.interval

    @property
    def no_rescue_before(self) -> float:
        """Monotonic time in seconds before which this worker looks for no jobs of dead workers."""
        return max(self._others_have_until, self.no_expiry_before)

    async def run(self, stopping: asyncio.Event) -> None:
        """Send heartbeats until `stopping` is set or the session has ended."""
        self._handle = handle = self._backend.new_handle()
        try:
            while not (stopping.is_set() or self.ended):
                notified = self._requested.is_set()
                self._requested.clear()
                pause = await self._send(handle, notified=notified)
                await wait_for_first(
                    self._clock.sleep(pause), self._requested.wait(), stopping.wait()
                )
        finally:
            await handle.close()

    def send_now(self) -> None:
        """Send the next heartbeat at once. Call this on the loop that runs the heartbeat.

        If a heartbeat is under way, another one follows it.
        """
        self._requested.set()

    async def _send(self, handle: Backend, *, notified: bool = False) -> float:
        """Send one heartbeat and return the seconds until the next. `notified`: the backend has
        news for the session.
        """
        sent = self._clock.monotonic()
        try:
            async with asyncio.timeout(
                max(0.05, min(self.interval, self.lease_valid_until - sent))
            ):
                await handle.open()
                self._vitals.note_lease_margin(self.lease_valid_until - sent)
                vitals = self._vitals.read()
                reply = await handle.consuming.heartbeat(self._session_id, vitals)
                self._vitals.forget_lag(vitals)
        except SessionLost:
            self._connectivity.note_answer("heartbeat")
            self._end("is not known to the backend any more (it expired, or its data is gone)")
        except (BackendError, TimeoutError) as error:
            return self._note_failure(error)
        except Exception as error:  # noqa: BLE001 - the heartbeat must continue
            _log.exception("a heartbeat failed")
            return self._note_failure(error)
        else:
            self._connectivity.note_answer("heartbeat", self._clock.monotonic() - sent)
            self._note_answer(sent)
            self.fleet_size = reply.fleet_size
            self.no_expiry_before = sent + reply.next_expiry
            self._on_reply(reply)
            if self._stacks.must_look(notified=notified):
                await self._stacks.answer(handle, self.interval / 2)
        return self.interval

    def _note_answer(self, sent: float) -> None:
        if sent - self._answered > _MAX_SILENT_INTERVALS * self.interval:
            self._others_have_until = self._clock.monotonic() + self.interval
        self._answered = sent
        self.lease_valid_until = sent + self._ttl * (1 - _SAFETY_MARGIN)

    def _note_failure(self, error: Exception) -> float:
        self._connectivity.note_failure("heartbeat", error)
        now = self._clock.monotonic()
        left = self.lease_valid_until - now
        if now - self._answered > _MAX_SILENT_INTERVALS * self.interval:
            self._others_have_until = math.inf
        _log.debug("a heartbeat was not answered (%s); the lease is valid for %.1f s", error, left)
        if left <= 0:
            self._end("could not be renewed in time")
        return max(0.01, min(self.interval / 4, left))

    async def release(self, leases: Sequence[Lease], nonce: bytes | None) -> None:
        """Release these leases. Retries until the backend answers or the session ends."""
        while not self.ended and self._handle is not None:
            try:
                async with asyncio.timeout(self.interval):
                    await self._handle.consuming.release(self._session_id, leases, nonce)
                return
            except (BackendError, TimeoutError) as error:
                _log.debug("leases were not released (%s); retrying", error)
                await self._clock.sleep(min(1.0, self.interval / 4))

    async def close_session(self) -> None:
        """Close the session in the backend, which releases its leases."""
        if self._handle is not None:
            await self._handle.consuming.close_session(self._session_id)

    def give_up(self) -> None:
        """End the session after the heartbeat itself failed, because nothing renews it any more."""
        if not self.ended:
            self._end("is not renewed any more")

    def _end(self, how: str) -> None:
        _log.error(
            "session %s ends: it %s; its running jobs are interrupted", self._session_id, how
        )
        self.ended = True
        self._others_have_until = math.inf
        self._on_end()


class HeartbeatThread:
    """A heartbeat that runs on its own thread. Start and stop it from the worker's loop."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._releases: set[asyncio.Future[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="nimburion-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread; return when its event loop runs."""
        self._thread.start()
        self._ready.wait()

    def send_now(self) -> None:
        """Send the next heartbeat at once."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the thread has ended, and its session too
                self._loop.call_soon_threadsafe(self._heartbeat.send_now)

    def release(self, leases: Sequence[Lease], nonce: bytes | None) -> None:
        """Release leases on this thread's connection. Safe from any thread; returns immediately."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the thread has ended, and its session too
                self._loop.call_soon_threadsafe(self._start_release, leases, nonce)

    def _start_release(self, leases: Sequence[Lease], nonce: bytes | None) -> None:
        task = asyncio.ensure_future(self._heartbeat.release(leases, nonce))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    def close_session(self, timeout: float) -> bool:
        """Close the session within `timeout` seconds; return whether that succeeded.

        Call this from a thread other than the worker's.
        """
        if self._loop is None or not self._thread.is_alive():
            return False
        closing = asyncio.run_coroutine_threadsafe(self._heartbeat.close_session(), self._loop)
        try:
            closing.result(timeout)
        except Exception as error:  # noqa: BLE001 - the process ends after any error
            _log.debug("the session was not closed (%s)", error)
            return False
        return True

    async def stop(self) -> None:
        """Stop the heartbeat; return when the thread has ended."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._stopping.set)
            except RuntimeError:  # the thread has just ended by itself
                _log.debug("the heartbeat thread had ended")
        await join_thread(self._thread)

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except Exception:  # noqa: BLE001 - the waiting code must learn of it
            _log.exception("the heartbeat thread failed")
            self._heartbeat.give_up()
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._ready.set()
        await self._heartbeat.run(self._stopping)


class HeartbeatTask:
    """A heartbeat task on the worker's loop: for backends and clocks bound to one loop (tests)."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._heartbeat.run(self._stopping))

    def send_now(self) -> None:
        """Send the next heartbeat at once."""
        self._heartbeat.send_now()

    async def stop(self) -> None:
        """Stop the heartbeat; return when the task has ended."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
