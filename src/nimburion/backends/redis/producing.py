"""`RedisProducing`: enqueue and cancel jobs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nimburion.backends.redis import enqueue as enqueueing
from nimburion.backends.redis import runs
from nimburion.backends.redis.encoding import encode_lookup_text
from nimburion.backends.redis.enqueue import encode_batch
from nimburion.backends.redis.flows import NamedSources
from nimburion.backends.redis.record_format import UNKNOWN_LANE
from nimburion.backends.redis.server import RedisServer
from nimburion.backends.server.encoding import decode_id, encode_id_or_empty
from nimburion.core.backend import Producing
from nimburion.core.errors import BackendUnavailable, JobNotFound
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.maintenance import Cancellation
from nimburion.core.runs import MAX_SIGNALS, NewSignal, SignalOutcome
from nimburion.core.schedules import Fired, Overlap, encode_tick


class RedisProducing(Producing):
    """The operations of `Producing` for the Redis backend."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        # Each batch of 500 jobs is stored atomically, the first one with all flows. For a call of
        # several batches, all jobs are checked before the first batch is stored.
        if not jobs and not flows:
            return []
        connections = self._server.get_connections()
        if (
            len(jobs) == 1
            and not flows
            and (plain := enqueueing.encode_single(jobs[0])) is not None
        ):
            reply = await self._server.run_enqueue_script(connections, "enqueue_one", plain)
            if reply != UNKNOWN_LANE:
                return enqueueing.make_single_result(jobs[0], reply)
        if flows and len(jobs) > enqueueing.BATCH_SIZE:
            return await self._enqueue_callbacks_first(jobs, flows)
        return await self._enqueue_all(jobs, flows)

    async def _enqueue_callbacks_first(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow]
    ) -> list[Enqueued]:
        """Store the callbacks of flows before the members, which are in a later batch.

        A flow may end before the last batch. A callback that comes then would count as stored.
        """
        order = sorted(range(len(jobs)), key=lambda at: jobs[at].options.counted_flow is not None)
        results = await self._enqueue_all([jobs[at] for at in order], flows)
        by_place = dict(zip(order, results, strict=True))
        return [by_place[at] for at in range(len(jobs))]

    async def _enqueue_all(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow]
    ) -> list[Enqueued]:
        slices = enqueueing.encode_batches(jobs)
        if len(slices) > 1:
            reply = await self._server.run_script("check_enqueue", *enqueueing.encode_lookups(jobs))
            refused = enqueueing.predict_refusal(jobs, reply)
            if refused is not None:
                return refused
        named = None
        if flows or any(batch.has_conditions for batch in slices):
            named = NamedSources(jobs, flows)
        return await self._enqueue_batches(jobs, slices, named)

    async def _enqueue_batches(
        self,
        jobs: Sequence[NewJob],
        batches: Sequence[enqueueing.EncodedBatch],
        named: NamedSources | None,
    ) -> list[Enqueued]:
        """Store the batches of a call one after the other, until one is refused."""
        connections = self._server.get_connections()
        results: list[Enqueued] = []
        trips: set[int] = set()
        script = "enqueue" if named is None else "enqueue_flow"
        for at, batch in enumerate(batches):
            start = at * enqueueing.BATCH_SIZE
            part = jobs[start : start + enqueueing.BATCH_SIZE]
            arguments, is_last = batch.make_arguments(), at == len(batches) - 1
            if named is not None:
                arguments = [*named.encode(is_first=at == 0, is_last=is_last), *arguments]
            reply = await self._server.run_enqueue_script(
                connections, script, arguments, flush=is_last
            )
            if named is not None:
                named.check_reply(reply)
            trips.add(connections.enqueues.connection_count)
            found = enqueueing.make_results(part, reply)
            results += found
            if any(result.outcome in {"conflict", "taken"} for result in found):
                break
        else:
            self._check_one_server(trips)
        return results + [Enqueued(job.id, "refused") for job in jobs[len(results) :]]

    def _check_one_server(self, connections: Collection[int]) -> None:
        """Raise `BackendUnavailable` if the batches of a durable call used several connections. The
        flush after the last batch covers all batches only on one connection. After a reconnect, the
        server may have lost the first batches.
        """
        if self._server.settings.durable_enqueue and len(connections) > 1:
            problem = "the connection was lost between slices; the first may not be on the disk"
            raise BackendUnavailable(f"{self._server.settings.describe()}: {problem}")

    async def cancel(self, job_id: str) -> Cancellation:
        reply = await self._server.run_script("cancel", encode_id_or_empty(job_id))
        if reply == b"missing":
            raise JobNotFound(job_id)
        return Cancellation(reply.decode())

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[SignalOutcome]:
        arguments, outcomes = runs.encode_signals(signals), []
        for start in range(0, len(arguments), 4 * MAX_SIGNALS):
            batch = arguments[start : start + 4 * MAX_SIGNALS]
            reply = await self._server.run_script("send_signals", *batch)
            outcomes += runs.decode_outcomes(reply)
        return outcomes

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        batch = encode_batch([job])
        arguments = [
            encode_lookup_text(name),
            b"" if expected_last is None else encode_tick(expected_last).encode(),
            encode_tick(tick).encode(),
            overlap.encode(),
            batch.positions,
            *batch.lanes,
            *batch.bodies,
            *batch.large_payloads,
        ]
        connections = self._server.get_connections()
        outcome, job_id = await self._server.run_enqueue_script(connections, "fire", arguments)
        return Fired(outcome.decode(), decode_id(job_id) if job_id else None)
