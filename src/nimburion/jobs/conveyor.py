"""The one call in flight between a worker and its store.

Whatever settles while an exchange is under way goes with the next one; so batches grow by
themselves when there is much to do, and a single completion leaves at once when there is not.
An unanswered exchange is repeated under its number until it is answered.
"""

from __future__ import annotations

import asyncio
import logging

from nimburion.core.backend import Consuming
from nimburion.core.clock import Clock
from nimburion.core.errors import (
    BackendError,
    NotSupported,
    OutOfOrder,
    SessionLost,
    Unstorable,
)
from nimburion.core.events import Events, StaleSettlement, StoreUnreachable
from nimburion.core.exchange import NOTHING, Reply, Want
from nimburion.core.job import AttemptError, Reason
from nimburion.core.lease import Lease
from nimburion.core.settlement import Failed, Progressed, Released, Settled, Settlement
from nimburion.jobs.outcome import clean
from nimburion.jobs.reach import Reach

_log = logging.getLogger("nimburion.worker")

MOST_AT_ONCE = 500
"""Settlements in one exchange: what a store does in a few milliseconds."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_FATAL = (SessionLost, Unstorable, OutOfOrder, NotSupported)


class Conveyor:
    """The settlements of one session on their way to the store, in order, each once."""

    def __init__(
        self, backend: Consuming, session_id: str, clock: Clock, events: Events, reach: Reach
    ) -> None:
        self._backend = backend
        self.session_id = session_id
        self._clock = clock
        self._events = events
        self._reach = reach
        self._number = 0
        self._progress: dict[Lease, Progressed] = {}
        self.pending: list[Settlement] = []
        self.in_flight: bool = False
        """Whether an exchange was sent and has no answer yet."""
        self._unanswered: tuple[list[Settlement], Want] | None = None
        """What a cancelled exchange carried: it may have been applied, so it is sent again as it
        was, under its number, before anything else."""
        self.abandoned = False
        """Set when the session is given up: nothing is sent or repeated any more."""

    def settle(self, settlement: Settlement) -> None:
        """Send this with the next exchange."""
        self.pending.append(settlement)

    def report(self, progress: Progressed) -> None:
        """Send this with the next exchange, unless a newer report of the lease takes its place."""
        self._progress[progress.lease] = progress

    @property
    def loaded(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self.pending or self._progress or self._unanswered)

    @property
    def all_stored(self) -> bool:
        """Whether the backend has answered for every settlement: none waits or is under way."""
        return not (self.pending or self._unanswered or self.in_flight)

    async def turn(self, want: Want) -> Reply:
        """One exchange: send what waits (a bounded part of it), bring back what `want` asks for.

        Returns when the store has answered, however long that takes. `SessionLost` when the
        session is over.
        """
        batch, want = self._unanswered or (self._load(), want)
        self._unanswered, self.in_flight = None, True
        try:
            reply = await self._send(batch, want)
        except asyncio.CancelledError:
            self._unanswered = batch, want
            raise
        finally:
            self.in_flight = False
        return reply

    def _load(self) -> list[Settlement]:
        batch: list[Settlement] = list(self._progress.values())
        self._progress.clear()
        batch += self.pending[:MOST_AT_ONCE]
        del self.pending[:MOST_AT_ONCE]
        return batch

    async def _send(self, batch: list[Settlement], want: Want) -> Reply:
        """One exchange; refused for its data, it is halved until the culprit stands alone."""
        try:
            return await self._until_answered(batch, want)
        except Unstorable as error:
            if not batch:
                raise
            if len(batch) == 1:
                return await self._until_answered([_instead_of(batch[0], error)], want)
            half = len(batch) // 2
            await self._send(batch[:half], NOTHING)
            return await self._send(batch[half:], want)

    async def _until_answered(self, batch: list[Settlement], want: Want) -> Reply:
        pause = _FIRST_PAUSE
        while not self.abandoned:
            try:
                reply = await self._backend.exchange(self.session_id, self._number + 1, batch, want)
            except _FATAL:
                self._reach.note_answer("exchange")
                raise
            except BackendError as error:
                self._reach.note_failure("exchange", error)
                self._events.emit(StoreUnreachable(str(error)))
                _log.debug("the store did not answer (%s); again in %.2f s", error, pause)
                await self._clock.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._reach.note_answer("exchange")
                self._number += 1
                self._report_stale(batch, reply)
                return reply
        raise SessionLost(self.session_id)

    def _report_stale(self, batch: list[Settlement], reply: Reply) -> None:
        if Settled.STALE not in reply.results:
            return
        for settlement, result in zip(batch, reply.results, strict=True):
            if result is Settled.STALE:
                self._events.emit(StaleSettlement(settlement.lease.job_id))
                _log.warning(
                    "job %s is not held by this worker any more; its outcome was not written",
                    settlement.lease.job_id,
                )


def _instead_of(settlement: Settlement, error: Unstorable) -> Settlement:
    """What to write where `settlement` cannot be stored: the job fails, so it wedges nothing."""
    _log.error("job %s cannot be settled as it is: %s", settlement.lease.job_id, error)
    if isinstance(settlement, Progressed):
        return Progressed(settlement.lease, settlement.fraction)
    if isinstance(settlement, Failed):
        return Released(settlement.lease, delay=60.0)
    message = clean(f"what the attempt left behind cannot be stored: {error}", 1024)
    report = AttemptError(attempt=0, kind="unstorable", type="Unstorable", message=message)
    return Failed(settlement.lease, Reason.UNSTORABLE, report)
