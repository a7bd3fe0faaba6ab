"""One session of a worker, from open to close, with its completer and its heartbeat."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendError, BackendFull, BackendReplaced, BackendUnavailable
from nimburion.core.events import Events, SessionEnded, SessionOpened
from nimburion.core.ids import Entropy, make_session_id
from nimburion.core.lease import Lease
from nimburion.core.session import HeartbeatReply, Session, WorkerCommand
from nimburion.core.settings import Settings
from nimburion.core.timing.clock import Clock
from nimburion.core.timing.pauses import iterate_pauses
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange.completer import Completer
from nimburion.jobs.worker.exchange.exchange_size import ExchangeSize
from nimburion.jobs.worker.session.heartbeat import Heartbeat, HeartbeatTask, HeartbeatThread
from nimburion.jobs.worker.session.session_listener import SessionListener
from nimburion.jobs.worker.session.stack_requests import ReadStack, StackRequests
from nimburion.jobs.worker.session.vitals import VitalsReader

_log = logging.getLogger("nimburion.worker")

_MAX_FAILING_FRACTION = 0.9
"""A fraction of the time to live. Exchanges that fail for this long end the session.

This holds even if heartbeats are answered. So the session is closed, and its jobs are free, within
the time to live.
"""
_CLOSE_TIMEOUT = 5.0
"""Seconds that the backend has to close a session. After that it expires by itself."""
_FIRST_PAUSE = 0.05
"""Seconds between the first two tries to open or close a session."""
_LONGEST_PAUSE = 2.0
"""The longest time in seconds between two tries."""


class WorkerSession:
    """A worker's session in the backend, under one id. Opened once, closed once."""

    def __init__(
        self,
        backend: Backend,
        session: Session,
        clock: Clock,
        events: Events,
        connectivity: BackendConnectivity,
        *,
        threaded: bool,
        size: ExchangeSize,
        max_unsettled: int,
        vitals: VitalsReader,
        read_stack: ReadStack,
        on_heartbeat: Callable[[], None],
        on_heartbeat_reply: Callable[[HeartbeatReply], None],
        on_end: Callable[[WorkerSession], None],
    ) -> None:
        self._backend = backend
        self._session = session
        self.id: str = session.id
        """The id of the session in the backend."""
        self._clock = clock
        self._events = events
        self._connectivity = connectivity
        self._loop = asyncio.get_running_loop()
        self._on_heartbeat = on_heartbeat
        self._on_heartbeat_reply = on_heartbeat_reply
        self._on_end = on_end
        self.completer: Completer = Completer(
            backend.consuming,
            session.id,
            clock,
            events,
            connectivity,
            size=size,
            max_unsettled=max_unsettled,
            give_up_after=session.ttl * _MAX_FAILING_FRACTION,
        )
        self._stacks = StackRequests(
            session.id, clock, read_stack, polls=not backend.capabilities.notifies
        )
        self._is_reply_pending = False
        """Whether the event loop has not processed the last reply to a heartbeat."""
        self.heartbeat: Heartbeat = Heartbeat(
            backend,
            session.id,
            session.ttl,
            clock,
            connectivity,
            vitals=vitals,
            stacks=self._stacks,
            on_reply=self._post_heartbeat_reply,
            on_end=self._post_end,
        )
        self._command: WorkerCommand | None = None
        """The latest command that was passed on."""
        self.lost: bool = False
        """Whether an exchange found the session lost, before its heartbeat did, or the worker lets
        it expire."""
        self._is_left = False
        """Whether `let_expire` was called."""
        self._heartbeat_runner = (
            HeartbeatThread(self.heartbeat) if threaded else HeartbeatTask(self.heartbeat)
        )
        self._listener = SessionListener(
            backend, session.id, clock, self._heartbeat_runner.send_now
        )

    @property
    def is_over(self) -> bool:
        """Whether the session has ended: no job can be reserved or settled under it."""
        return self.heartbeat.ended or self.completer.closed

    @property
    def lease_seconds_left(self) -> float:
        """Seconds for which the leases stay valid if the backend does not answer again."""
        return max(0.0, self.heartbeat.lease_valid_until - self._clock.monotonic())

    async def open(self, command: WorkerCommand | None = None) -> None:
        """Open the session, give it the command of the session before, and start its heartbeat.

        Operators can thus see the command that the worker still follows, and take it back.

        Retries while the backend is unreachable or full. Raises `SessionLost` if the session was
        opened and rescued before its reply arrived.
        """
        pauses = iterate_pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            sent = self._clock.monotonic()
            try:
                await self._backend.consuming.open_session(self._session)
                if command is not None:
                    await self._backend.maintenance.send_command(self.id, command)
                break
            except (BackendUnavailable, BackendReplaced, BackendFull) as error:
                self._connectivity.note_failure("exchange", error)
                pause = next(pauses)
                _log.debug("no session yet (%s); retrying in %.2f s", error, pause)
                await self._clock.sleep(pause)
        self._command = command
        self._connectivity.note_answer("exchange")
        self.heartbeat.begin(sent)
        self._heartbeat_runner.start()
        await self._listener.start()
        self._events.emit(SessionOpened(self.id))

    async def close(self, running: Sequence[Lease] = (), *, until_answered: bool = False) -> None:
        """Stop the heartbeat and close the session. Leases in `running` stay until they expire.

        If the backend does not answer within 5 s, the session expires by itself. With
        `until_answered` this waits for an unreachable backend without limit. A worker that
        continues needs this: an outage must not count its jobs as lost.
        """
        await self._end()
        pauses = iterate_pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        until = self._clock.monotonic() + _CLOSE_TIMEOUT
        while True:
            try:
                await self._backend.consuming.close_session(self.id, running)
                break
            except BackendError as error:
                self._connectivity.note_failure("exchange", error)
                waits = until_answered and isinstance(error, BackendUnavailable)
                if not waits and self._clock.monotonic() >= until:
                    break
                await self._clock.sleep(next(pauses))
        is_lost = self.lost or self.heartbeat.ended or not self.lease_seconds_left
        how = "lost" if is_lost else "closed"
        self._events.emit(SessionEnded(self.id, how))

    async def let_expire(self) -> None:
        """Stop the heartbeat and do not close the session.

        When it has expired, a rescue counts one loss for each job that it still holds.
        """
        if not self._is_left:
            self._is_left = self.lost = True
            await self._end()
            self._events.emit(SessionEnded(self.id, "lost"))

    async def _end(self) -> None:
        """Make no more exchanges under this session, and send no more heartbeats."""
        self.completer.closed = True
        await self._listener.stop()
        await self._heartbeat_runner.stop()

    def release(self, leases: Sequence[Lease], nonce: bytes | None) -> None:
        """Release leases on the connection of the heartbeat, because the worker's loop is blocked.

        Safe from any thread. Does nothing if the heartbeat has no thread.
        """
        if isinstance(self._heartbeat_runner, HeartbeatThread):
            self._heartbeat_runner.release(leases, nonce)

    def close_from_thread(self, timeout: float) -> bool:
        """Close the session on the heartbeat's connection while this process ends.

        Waits at most `timeout` seconds. Returns whether the session was closed in time.
        """
        return isinstance(
            self._heartbeat_runner, HeartbeatThread
        ) and self._heartbeat_runner.close_session(timeout)

    def _post_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        self._stacks.is_loop_blocked, self._is_reply_pending = self._is_reply_pending, True
        if self._loop.is_closed():  # no worker uses the session any more: let it expire
            self.heartbeat.ended = True
        elif reply.cancel or reply.command is not self._command:
            self._command = reply.command
            self._post(lambda: self._apply_heartbeat_reply(reply))
        else:
            self._post(self._note_heartbeat)

    def _apply_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        self._is_reply_pending = False
        self._on_heartbeat_reply(reply)

    def _note_heartbeat(self) -> None:
        self._is_reply_pending = False
        self._on_heartbeat()

    def _post_end(self) -> None:
        self.completer.closed = True
        self._post(lambda: self._on_end(self))

    def _post(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the worker's loop. Safe from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)


def make_session(registry: Registry, settings: Settings, entropy: Entropy) -> Session:
    """Return a new session with a random id, from this process, the settings and the registry."""
    return Session(
        id=make_session_id(entropy),
        ttl=settings.session_ttl,
        host=socket.gethostname(),
        pid=os.getpid(),
        owner=settings.owner,
        queues=tuple(queue.name for queue in settings.queues) or tuple(registry.queues),
        names=tuple(registry.names),
        limits=registry.limits,
        weights={tenant.name: tenant.weight for tenant in settings.tenants},
    )
