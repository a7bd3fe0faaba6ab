"""What the memory store keeps: jobs, sessions, gates, and where each job stands."""

from __future__ import annotations

from collections import defaultdict
from heapq import heappop, heappush

import msgspec

from nimburion.core.errors import Unstorable
from nimburion.core.job import AttemptError, JobRecord, NewJob, Options, Progress, State, digest
from nimburion.core.lease import Lease, Token
from nimburion.core.schedules import ScheduleRecord
from nimburion.core.session import Session
from nimburion.core.settlement import Settled

MICRO = 1_000_000
"""Times are kept in whole microseconds, as on every store: what is equal here is equal there."""


_FURTHEST = 2**63 / MICRO / 2
"""Seconds; twice as many would fill the 64 bits that stores have for microseconds."""


def micros(seconds: float) -> int:
    """Seconds in whole microseconds."""
    return round(seconds * MICRO)


def check_time(seconds: float) -> None:
    """Refuse what is no time, before anything of its call is applied."""
    if not -_FURTHEST < seconds < _FURTHEST:
        raise Unstorable(f"{seconds!r} s is no time or span that can be stored")


class Held:
    """A lease as the store has it."""

    __slots__ = ("at", "cancel", "gated", "number", "session", "token")

    def __init__(self, session: Tenant, number: int, token: Token, at: int, *, gated: bool) -> None:
        self.session: Tenant = session
        self.number: int = number
        self.token: Token = token
        self.at: int = at
        self.gated: bool = gated
        self.cancel: bool = False


Place = tuple[int, int, int]
"""Where a job stands in its lane: minus its priority, due time, enqueue order. Lower is earlier."""


class Entry:
    """One job."""

    __slots__ = (
        "created_at",
        "digest",
        "due",
        "failures",
        "fence",
        "finished_at",
        "held",
        "history",
        "id",
        "lost",
        "name",
        "options",
        "payload",
        "place",
        "priority",
        "progress",
        "queue",
        "reason",
        "result",
        "seq",
        "settled",
        "started_at",
        "state",
    )

    def __init__(self, job: NewJob, seq: int, now: int) -> None:
        self.id: str = job.id
        self.name: str = job.name
        self.queue: str = job.queue
        self.payload: bytes | None = job.payload
        self.digest: bytes | None = None
        """Set when the payload goes."""
        self.priority: int = job.priority
        self.options: Options = job.options
        self.seq: int = seq
        self.due: int = micros(job.at) if job.at is not None else now + max(0, micros(job.after))
        self.created_at: int = now
        self.started_at: int | None = None
        self.finished_at: int | None = None
        self.failures: int = 0
        self.lost: int = 0
        self.fence: int = 0
        self.state: State | None = None
        """How it ended; None while it is unfinished."""
        self.reason: str | None = None
        self.history: tuple[AttemptError, ...] = ()
        self.progress: Progress | None = None
        self.result: bytes | None = None
        self.held: Held | None = None
        self.settled: Token | None = None
        """The token of its latest settlement."""
        self.place: Place | None = None
        """Its place in the line or in the list of the scheduled; None: in neither."""

    def body_digest(self) -> bytes:
        """What tells this body from another, also when the payload is gone."""
        if self.digest is not None or self.payload is None:
            return self.digest or b""
        return digest(self.name, self.payload)

    def state_at(self, now: int) -> State:
        """Where it stands."""
        if self.state is not None:
            return self.state
        if self.held is not None:
            return State.PROCESSING
        if self.failures:
            return State.RETRYING
        return State.SCHEDULED if self.due > now else State.PENDING

    def lease(self, token: Token) -> Lease:
        """The lease of a holder of this token."""
        return Lease(self.id, token, self.seq)

    def record(self, now: int, *, payloads: bool) -> JobRecord:
        """The entry in the words of the contract."""
        return JobRecord(
            id=self.id,
            name=self.name,
            queue=self.queue,
            state=self.state_at(now),
            priority=self.priority,
            payload=self.payload if payloads else None,
            failures=self.failures,
            lost=self.lost,
            due=self.due / MICRO,
            created_at=self.created_at / MICRO,
            started_at=_seconds(self.held.at if self.held else self.started_at),
            finished_at=_seconds(self.finished_at),
            reason=self.reason,
            history=list(self.history),
            progress=self.progress,
            result=self.result,
            cancel_requested=self.held is not None and self.held.cancel,
            session=self.held.session.said.id if self.held else None,
            options=self.options,
        )


def _seconds(at: int | None) -> float | None:
    return None if at is None else at / MICRO


class Tenant:
    """A session as the store has it."""

    __slots__ = ("died_at", "expires", "held", "left", "number", "opened_at", "results", "said")

    def __init__(self, said: Session, opened_at: int, expires: float) -> None:
        self.said: Session = said
        self.opened_at: int = opened_at
        self.expires: float = expires
        """On the monotonic clock."""
        self.number: int = 0
        """Its latest exchange, and ..."""
        self.results: list[Settled] = []
        """... what that made of the settlements."""
        self.left: bool = False
        self.died_at: int | None = None
        self.held: dict[int, Entry] = {}
        """What it holds, by seq."""

    @property
    def dead(self) -> bool:
        """Whether it is over. Its id is remembered for a while, so that it never lives again."""
        return self.died_at is not None


class Limit:
    """A gate with a count of its own."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int, held: int) -> None:
        self.limit: int = limit
        self.held: int = held

    @property
    def room(self) -> int:
        """How many more may pass."""
        return max(0, self.limit - self.held)


class Key(msgspec.Struct):
    """Who holds a unique key, and until when (None: while its job is unfinished)."""

    job_id: str
    until: int | None


Line = list[tuple[Place, Entry]]


class Shelf:
    """All the data of one store. Handles share it."""

    def __init__(self) -> None:
        self.seq = 0
        self.jobs: dict[str, Entry] = {}
        self.by_seq: dict[int, Entry] = {}
        self.lanes: dict[tuple[str, str], Line] = defaultdict(list)
        """Heaps; an entry that no longer has the place it is filed under is passed over."""
        self.scheduled: list[tuple[int, int, Place, Entry]] = []
        """A heap by due time and seq, likewise."""
        self.sessions: dict[str, Tenant] = {}
        self.gates: dict[str, Limit] = {}
        self.keys: dict[tuple[str, str], Key] = {}
        self.paused: set[str] = set()
        self.schedules: dict[str, ScheduleRecord] = {}

    def stand(self, entry: Entry, now: int) -> None:
        """Let an entry stand in its lane, or aside until it is due."""
        entry.place = place = (-entry.priority, entry.due, entry.seq)
        if entry.due <= now:
            heappush(self.lanes[entry.queue, entry.name], (place, entry))
        else:
            heappush(self.scheduled, (entry.due, entry.seq, place, entry))

    def head(self, lane: tuple[str, str]) -> Entry | None:
        """The first of a lane; None when it is empty."""
        line = self.lanes.get(lane)
        while line:
            place, entry = line[0]
            if entry.place is place:
                return entry
            heappop(line)
        return None

    def take_head(self, lane: tuple[str, str]) -> Entry:
        """Take the first of a lane, that `head` has just named, out of the line."""
        _, entry = heappop(self.lanes[lane])
        entry.place = None
        return entry

    def next_scheduled(self) -> Entry | None:
        """The scheduled entry that is due first."""
        while self.scheduled:
            _, _, place, entry = self.scheduled[0]
            if entry.place is place:
                return entry
            heappop(self.scheduled)
        return None

    def promote(self, now: int, limit: int) -> list[Entry]:
        """Move up to `limit` entries that are due into the line, earliest first."""
        moved: list[Entry] = []
        while len(moved) < limit and (entry := self.next_scheduled()) and entry.due <= now:
            heappop(self.scheduled)
            self.stand(entry, now)
            moved.append(entry)
        return moved

    def forget(self, entry: Entry) -> None:
        """Drop a finished entry."""
        del self.jobs[entry.id]
        del self.by_seq[entry.seq]
