"""The Redis store: also Valkey, behind Sentinel, or in a cluster."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from nimburion.backends.redis import enqueue, operations, queries, sessions
from nimburion.backends.redis import enqueue as durability
from nimburion.backends.redis import enqueue as enqueueing
from nimburion.backends.redis import exchange as exchanging
from nimburion.backends.redis.checks import findings
from nimburion.backends.redis.connection.command_connection import Line, Part
from nimburion.backends.redis.connection.topology import Servers
from nimburion.backends.redis.encoding import asked_text, seconds_of
from nimburion.backends.redis.keys import Keys
from nimburion.backends.redis.long_poll import Command, Parking
from nimburion.backends.redis.notifications import Arm, Bell
from nimburion.backends.redis.queries import FEW, STEP, Walk, fields_of
from nimburion.backends.redis.scripts import Script, Scripts
from nimburion.backends.redis.server_check import Server, vet
from nimburion.backends.redis.url import Address, parse
from nimburion.backends.server.encoding import MICRO, STATE_CODES, asked_id, micros
from nimburion.backends.server.errors import no_roles
from nimburion.backends.server.handle import OpenHandle
from nimburion.core.backend import Capabilities
from nimburion.core.checks import Finding, finding_of
from nimburion.core.clock import Clock, SystemClock
from nimburion.core.errors import (
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    FormatMismatch,
)
from nimburion.core.exchange import Reply, Want
from nimburion.core.ids import Entropy
from nimburion.core.job import FINISHED, Enqueued, JobRecord, NewJob, State
from nimburion.core.lease import Lease
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, JobFilter, Page, QueueInfo
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import Orders, Session, SessionInfo
from nimburion.core.settlement import Settlement

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    joins_transaction=False,
    atomic_batch=enqueueing.SLICE,
    shared=True,
    patient=True,
    remote=True,
)
_ON_A_CLOCK = msgspec.structs.replace(CAPABILITIES, patient=False)
_STEP = 500
"""The most that one script moves."""


class RedisBackend:
    """A store in one Redis or Valkey server, Sentinel service or cluster.

    All of its keys begin with `{namespace}:`, so that in a cluster they lie on one node.

    Args:
        url: where; see `docs/how-to/redis-in-production.md` for all forms.
        namespace: what the keys begin with; also in the URL, as all of the following.
        require_durable: refuse a server that would lose jobs, instead of warning.
        durable_enqueue: `enqueue` returns when the job is on the server's disk.
        timeout: seconds that connecting may take, and then each answer.
        clock: tests pass theirs; else the server's own time counts.
        entropy: unused here, taken so that every store is made alike.

    >>> RedisBackend("redis://localhost:6379/0").capabilities.durable
    True
    """

    def __init__(
        self,
        url: str | Address = "redis://localhost:6379/0",
        *,
        namespace: str | None = None,
        require_durable: bool | None = None,
        durable_enqueue: bool | None = None,
        timeout: float | None = None,
        clock: Clock | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        address = url if isinstance(url, Address) else parse(url)
        self.address: Address = address.using(
            namespace=namespace,
            require_durable=require_durable,
            durable_enqueue=durable_enqueue,
            timeout=timeout,
        )
        self._given = clock
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._warned: set[str] = set()
        """The warnings about the server that were logged already; shared with siblings."""
        self._handle = OpenHandle(self.describe(), self._make_connections)

    @classmethod
    def from_url(cls, url: str, **options: object) -> RedisBackend:
        """The store that `redis://localhost:6379/0` names."""
        return cls(url, **options)  # type: ignore[arg-type]

    # --- coming and going ---

    @property
    def capabilities(self) -> Capabilities:
        """As durable as the server is set up to be; a call is stored in slices of 500. On a test's
        clock it is not patient: the server waits by its own."""
        return CAPABILITIES if self._given is None else _ON_A_CLOCK

    def describe(self) -> str:
        """Name the store."""
        return self.address.describe()

    def sibling(self) -> RedisBackend:
        """Another handle on the same data, with connections of its own, not open yet."""
        sibling = RedisBackend(self.address, clock=self._given, entropy=self._entropy)
        sibling._warned = self._warned
        return sibling

    async def open(self) -> None:
        """Connect, and check server and format. Repeatable."""
        await self._handle.open()

    async def close(self) -> None:
        """Hang up. Repeatable."""
        await self._handle.close()

    async def exists(self) -> bool:
        """See `Backend.exists`."""
        return True

    async def ping(self) -> None:
        """Return when the server answers."""
        await self._here().asks.call("PING")

    async def now(self) -> float:
        """See `Backend.now`: the clock of the server."""
        opened = self._here()
        if self._given is not None:
            return micros(self._given.now()) / MICRO
        seconds, fraction = await opened.asks.call("TIME")
        return int(seconds) + int(fraction) / MICRO

    async def examine(self) -> list[Finding]:
        """See `Backend.examine`."""
        try:
            return await findings(self._here().asks.call, self.address, self._clock)
        except (BackendError, ConfigurationError) as error:
            return [finding_of("server", error)]

    async def plan(self) -> list[str]:
        """See `Backend.plan`. Reads on a connection of its own; needs no right to write."""
        opened = self._make_connections()
        try:
            return await opened.plan()
        finally:
            await opened.close()

    async def migrate(self) -> list[str]:
        """See `Backend.migrate`. There is one format so far, which the first `open` writes."""
        steps = await self.plan()
        await self.open()
        return steps

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`. What a user of the server may do is set on the server."""
        raise no_roles(self.describe(), role)

    def _make_connections(self) -> Opened:
        return Opened(self.address, self._arm, self._warned)

    def _here(self) -> Opened:
        return self._handle.get()

    def _times(self) -> tuple[Part, Part]:
        """The time of a test's clock; the server takes its own when it is told none."""
        if self._given is None:
            return b"", b""
        return micros(self._given.now()), micros(self._given.monotonic())

    async def _run(self, name: str, *arguments: Part) -> Any:  # noqa: ANN401 - a script's reply
        opened = self._here()
        (reply,) = await opened.run(opened.asks, name, arguments, self._times())
        return reply

    async def _arm(self, queues: Collection[str]) -> None:
        opened = self._here()
        channel = opened.bell.channel
        pairs = [part for queue in queues for part in (queue, b"1")]
        await opened.asks.call("HSET", channel, *pairs)

    # --- the way in ---

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `Backend.enqueue`. Each 500 jobs are stored in one step; before the first of several
        steps all are looked at."""
        if not jobs:
            return []
        if len(jobs) == 1 and (plain := enqueueing.alone(jobs[0])) is not None:
            ring = self._here().parking.ring_of(jobs[0].queue)
            answer = await self._write("enqueue_one", plain, more_keys=[ring])
            return enqueueing.result_of(jobs[0], answer)
        slices = enqueueing.slices_of(jobs)
        if len(slices) > 1:
            seen = await self._run("look", *enqueueing.questions_of(jobs))
            refused = enqueueing.foreseen(jobs, seen)
            if refused is not None:
                return refused
        results: list[Enqueued] = []
        trips: set[int] = set()
        for at, one in enumerate(slices):
            part = jobs[at * _STEP : (at + 1) * _STEP]
            is_last = at == len(slices) - 1
            answer = await self._write("enqueue", one.arguments(), flush=is_last)
            trips.add(self._here().enqueues.connections)
            found = enqueueing.results_of(part, answer)
            results += found
            if any(one.outcome in {"conflict", "taken"} for one in found):
                break
        else:
            self._check_one_server(trips)
        return results + [Enqueued(job.id, "refused") for job in jobs[len(results) :]]

    async def _write(
        self,
        script: str,
        arguments: Sequence[Part],
        *,
        more_keys: Sequence[bytes] = (),
        flush: bool = True,
    ) -> Any:  # noqa: ANN401 - a script's reply
        """Store new jobs; with `durable_enqueue`, wait until they are on the disk."""
        opened, flush = self._here(), flush and self.address.durable_enqueue
        then = opened.flush(self.address) if flush else ()
        answer, *flushed = await opened.run(
            opened.enqueues, script, arguments, self._times(), more_keys=more_keys, then=then
        )
        if flush:
            durability.check_flushed(flushed, self.address)
        return answer

    def _check_one_server(self, connections: Collection[int]) -> None:
        """The last of several slices was flushed for all of them: that holds where they went over
        one connection. Else a server that forgot the first may stand between."""
        if self.address.durable_enqueue and len(connections) > 1:
            problem = "the connection was lost between slices; the first may not be on the disk"
            raise BackendUnavailable(f"{self.describe()}: {problem}")

    # --- workers ---

    async def open_session(self, session: Session) -> None:
        """See `Backend.open_session`."""
        answer = await self._run("open_session", *sessions.opening_of(session))
        sessions.check_alive(answer, session.id)

    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        """See `Backend.exchange`."""
        opened = self._here()
        arguments = exchanging.arguments_of(session_id, number, settlements, want)
        if want.patience > 0:
            answer = await self._patiently(arguments, want, 0 if settlements else want.patience)
            return exchanging.reply_of(answer, session_id, number, want)
        (answer,) = await opened.run(opened.exchanges, "exchange", arguments, self._times())
        reply = exchanging.reply_of(answer, session_id, number, want)
        if want.total and not reply.waiting:
            opened.bell.note_armed({lane.queue for lane in want.lanes})
        return reply

    async def _patiently(self, arguments: Sequence[Part], want: Want, patience: float) -> Any:  # noqa: ANN401 - a script's reply
        """An exchange of a worker that has nothing to do: behind a wait, where it may wait."""
        opened = self._here()
        ahead = opened.parking.ahead([lane.queue for lane in want.lanes], patience)
        line, times = opened.exchanges, self._times()
        try:
            answers = await opened.run(
                line, "exchange", arguments, times, ahead=ahead, patience=patience
            )
        finally:
            opened.parking.leave()
        opened.parking.note(ahead, answers[:-1])
        return answers[-1]

    def hurry(self) -> None:
        """See `Patient.hurry`."""
        opened = self._handle.latest
        if opened is not None:
            opened.parking.hurry()

    async def beat(self, session_id: str) -> Orders:
        """See `Backend.beat`."""
        return sessions.orders_of(await self._run("beat", session_id), session_id)

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """See `Backend.release`. Releases 500 a step."""
        asked = sessions.releasing_of(session_id, leases, nonce, _STEP)
        while await self._run("release", *asked) == b"more":
            pass

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """See `Backend.close_session`. Releases 500 a step."""
        asked = sessions.closing_of(session_id, running, _STEP)
        while await self._run("close_session", *asked) == b"more":
            pass

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """See `Backend.rescue`."""
        answers: list[list[Any]] = []
        while limit > 0 or not answers:
            step = min(limit, _STEP)
            answer = await self._run("rescue", *sessions.rescuing_of(step, max_lost))
            answers.append(answer)
            limit -= step
            if not answer[3]:
                break
        return sessions.rescued_of(answers)

    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""
        count, due = 0, b""
        while True:
            step = min(limit - count, _STEP)
            moved, due = await self._run("promote", step)
            count += moved
            if moved < step or count >= limit:
                break
        next_due = seconds_of(int.from_bytes(due, "big")) if due else None
        return Promoted(count, next_due)

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """See `Backend.wait`."""
        await self._here().bell.wait(queues, timeout, self._clock.sleep)

    # --- operators ---

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        reply = await self._run("cancel", asked_id(job_id))
        return operations.cancellation_of(reply, job_id)

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`. Looks at 500 dead letters a step, until `limit` are found and it
        is known whether there are more."""
        scan = await self._open_scan(which, which.failed_states, after)
        replies: list[list[Any]] = []
        while not scan.ended:
            reply = await self._run("replay", *scan.step(limit))
            replies.append(reply)
            scan.go_on(*reply[:2])
            limit -= len(reply[2]) + len(reply[3])
            if reply[5]:
                break
        return operations.replayed_of(replies)

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`. Looks at 500 finished jobs a step."""
        scan = await self._open_scan(which, which.finished_states, deletes=True)
        ids: list[str] = []
        while len(ids) < limit and not scan.ended:
            after, last, found = await self._run("delete", *scan.step(limit - len(ids)))
            scan.go_on(after, last)
            ids += queries.ids_of(found)
        return ids

    async def pause(self, queue: str, *, paused: bool) -> None:
        """See `Backend.pause`."""
        await self._run("pause", queue, b"1" if paused else b"")

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`. Forgets 500 a step."""
        arguments, pruned, more = operations.pruning_of(keep), 0, 1
        while pruned < limit and more:
            step = min(limit - pruned, STEP)
            count, more = await self._run("prune", step, *arguments)
            more = more or count == step
            pruned += count
        return pruned

    async def _open_scan(
        self,
        which: JobFilter,
        states: frozenset[State] | None,
        after: str | None = None,
        *,
        deletes: bool = False,
    ) -> Walk:
        """The way through the jobs of a filter: those that it names, or the unfinished ones where
        only these are meant and they are few, or all."""
        fields: Iterable[bytes] | None = None
        if which.ids is not None:
            fields = await self._find_fields(which.ids)
        elif states and states.isdisjoint(FINISHED):
            letters = "".join(STATE_CODES[state] for state in states)
            fields = fields_of(await self._run("unfinished", letters, FEW))
        return Walk(which, states, after, given=fields, deletes=deletes)

    async def _find_fields(self, ids: Collection[str]) -> list[bytes]:
        """Where jobs lie, those that there are."""
        arguments, found = sorted({asked_id(one) for one in ids}), []
        for at in range(0, len(arguments), STEP):
            found += await self._run("find", *arguments[at : at + STEP])
        return [field for field in found if field is not None]

    # --- readers ---

    async def get(self, job_id: str) -> JobRecord:
        """See `Backend.get`."""
        reply = await self._run("get", asked_id(job_id))
        return queries.record_of(reply, job_id)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        """See `Backend.list_jobs`. Looks at 500 jobs a step: a page of a filter that few jobs fit
        takes as many steps as there are jobs before them."""
        scan = await self._open_scan(which, which.states, after)
        replies, left = [], limit + 1
        while left > 0 and not scan.ended:
            reply = await self._run("list", *scan.step(left), b"1" if payloads else b"")
            replies.append(reply)
            scan.go_on(*reply[:2])
            left -= len(reply[3])
        return queries.page_of(replies, limit)

    async def counts(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.counts`."""
        arguments = [] if queue is None else [asked_text(queue)]
        return queries.counts_of(await self._run_counting_script("counts", *arguments))

    async def queues(self) -> list[QueueInfo]:
        """See `Backend.queues`."""
        return queries.queues_of(await self._run_counting_script("queues"))

    async def sessions(self) -> list[SessionInfo]:
        """See `Backend.sessions`."""
        return queries.sessions_of(await self._run("sessions"))

    async def _run_counting_script(self, name: str, *arguments: Part) -> list[Any]:
        """What a script replies that counts. It takes up to 500 jobs that are due and not yet
        promoted for what they are; where there are more, they are promoted first."""
        while not (reply := await self._run(name, *arguments)):
            await self.promote(STEP)
        return reply  # type: ignore[no-any-return]

    # --- schedules ---

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""
        await self._run("put_schedule", *operations.schedule_of(schedule))

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        return operations.schedules_of(await self._run("schedules"))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""
        flag = b"1" if paused else b"0"
        return bool(await self._run("pause_schedule", asked_text(name), flag))

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        return bool(await self._run("delete_schedule", asked_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        arguments = operations.firing_of(name, (expected_last, tick), job, overlap)
        return operations.fired_of(await self._write("fire", arguments))


FORMAT = 1
"""What this version writes. Workers of one format run together."""


class Opened:
    """A store that is open on one event loop: its connections, and what its server is."""

    def __init__(self, address: Address, arm: Arm, warned: set[str]) -> None:
        self.address: Address = address
        self.servers: Servers = Servers(address, timeout=address.timeout)
        where = address.describe()
        self.asks: Line = Line(self.servers, where, address.timeout)
        """For all that is neither enqueued nor exchanged."""
        self.enqueues: Line = Line(self.servers, where, address.timeout)
        self.exchanges: Line = Line(self.servers, where, address.timeout)
        keys = Keys(address.namespace)
        self.bell: Bell = Bell(self.servers, keys.channel, arm)
        self.parking: Parking = Parking(keys.rings, self.exchanges, self.asks)
        self.server: Server
        self._keys = keys
        self._warned = warned
        self._scripts: dict[str, tuple[Script, tuple[bytes, ...]]] = {}

    async def start(self) -> None:
        """Look at the server and at the namespace.

        Raises:
            ConfigurationError: the server will not do.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: no answer.
        """
        self.server = await vet(self.asks.call, self.address, self._warned)
        self._scripts = {
            script.name: (script, self._keys.of(script.keys))
            for script in Scripts(self.server.version)
        }
        (found,) = await self.run(self.asks, "open", [b"%d" % FORMAT])
        _check_format(found, self.address)
        for line in (self.asks, self.enqueues, self.exchanges):
            line.proven = True

    async def plan(self) -> list[str]:
        """What `start` would do to the namespace, in words. Writes nothing.

        Raises:
            ConfigurationError: the server will not do.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: no answer.
        """
        await vet(self.asks.call, self.address, self._warned)
        (meta,) = self._keys.of(["meta"])
        found = await self.asks.call("HGET", meta, "format")
        if found is None:
            return [f"format {FORMAT}: namespace {self.address.namespace!r}"]
        _check_format(int(found), self.address)
        return []

    async def run(
        self,
        line: Line,
        name: str,
        arguments: Sequence[Part],
        times: tuple[Part, Part] = (b"", b""),
        *,
        more_keys: Sequence[bytes] = (),
        ahead: Sequence[Command] = (),
        then: Sequence[Command] = (),
        patience: float = 0.0,
    ) -> list[Any]:
        """Run a script: its reply, between those of the commands ahead of it and behind it."""
        script, keys = self._scripts[name]
        return await line.run(
            script,
            [*keys, *more_keys],
            [*times, *arguments],
            ahead=ahead,
            then=then,
            patience=patience,
        )

    def flush(self, address: Address) -> list[enqueue.Command]:
        """The commands behind a write that wait until it is on the disk."""
        return enqueue.flush_by(*self._scripts["flush"], address)

    async def close(self) -> None:
        """Hang up."""
        await self.bell.close()
        await self.parking.close()
        for line in (self.exchanges, self.enqueues, self.asks):
            await line.close()


def _check_format(found: int, address: Address) -> None:
    """Raise `FormatMismatch` for a format newer than ours."""
    if found > FORMAT:
        raise FormatMismatch(
            f"{address.describe()} has format {found}, this nimburion knows formats up to "
            f"{FORMAT}; nothing was changed. Upgrade nimburion here (pip install --upgrade "
            "nimburion)"
        )
