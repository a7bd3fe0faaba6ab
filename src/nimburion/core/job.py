"""What a job is in a backend: as it enters, as it is read, and the states between.

States and their legal moves are data (`TRANSITIONS`), so that every backend, the model and the docs
can be checked against the same table.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec


class State(enum.StrEnum):
    """Where a job stands. Members compare equal to the guide's words."""

    PENDING = "pending"
    """Due, never failed, waiting for a worker."""
    SCHEDULED = "scheduled"
    """Not due yet, never failed."""
    PROCESSING = "processing"
    """A worker holds its lease."""
    RETRYING = "retrying"
    """Failed at least once and waiting, due or not."""
    COMPLETED = "completed"
    FAILED = "failed"
    """A dead letter: kept whole until it is replayed, purged or pruned."""
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to the job by itself."""
        return self in FINISHED


FINISHED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

_WAITING = frozenset({State.PENDING, State.SCHEDULED, State.RETRYING})

TRANSITIONS: Mapping[str, tuple[frozenset[State], frozenset[State]]] = {
    "enqueue": (frozenset(), frozenset({State.PENDING, State.SCHEDULED})),
    "become due": (frozenset({State.SCHEDULED}), frozenset({State.PENDING})),
    "reserve": (frozenset({State.PENDING, State.RETRYING}), frozenset({State.PROCESSING})),
    "complete": (frozenset({State.PROCESSING}), frozenset({State.COMPLETED})),
    "retry": (frozenset({State.PROCESSING}), frozenset({State.RETRYING, State.CANCELLED})),
    "fail": (frozenset({State.PROCESSING}), frozenset({State.FAILED})),
    "release": (frozenset({State.PROCESSING}), _WAITING | {State.CANCELLED}),
    "rescue": (frozenset({State.PROCESSING}), _WAITING | {State.FAILED, State.CANCELLED}),
    "cancel": (_WAITING | {State.PROCESSING}, frozenset({State.CANCELLED})),
    "replay": (frozenset({State.FAILED}), frozenset({State.PENDING})),
}
"""Each operation: the states it takes a job from, and those it may leave it in.

`retry`, `release` and `rescue` end in `cancelled` where a cancel was asked for meanwhile."""


class Reason(enum.StrEnum):
    """Why a job failed for good."""

    EXHAUSTED = "exhausted"
    """Its failures exceeded `max_retries`."""
    PERMANENT = "permanent"
    """Its handler said that no retry would help."""
    LOST = "lost"
    """Its workers vanished `max_lost` times."""
    UNREADABLE = "unreadable"
    """Its payload does not fit the handler's types, or is no JSON."""
    UNSTORABLE = "unstorable"
    """What its attempt left behind cannot be stored."""


Kind = Literal["failure", "timeout", "permanent", "lost", "unreadable", "unstorable", "internal"]


class AttemptError(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one attempt ended badly; text already cleaned and cut (SPEC §4)."""

    attempt: int
    kind: Kind
    type: str
    message: str = ""
    traceback: str = ""
    at: float = 0.0
    """Store time, in epoch seconds; set by the backend."""


class JobOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may travel with a job and seldom does. Backends keep it as one JSON object."""

    headers: dict[str, str] = msgspec.field(default_factory=dict)
    tenant: str | None = None
    correlation_id: str | None = None
    unique_key: str | None = None
    """Scope (name, key): held until the job is finished, or for `unique_for` seconds."""
    unique_for: float | None = None
    on_duplicate: Literal["reject", "existing"] = "reject"
    max_retries: int | None = None
    """Instead of what the handler's declaration says."""
    timeout: float | None = None
    """Seconds, instead of what the handler's declaration says."""


NO_JOB_OPTIONS = JobOptions()


class NewJob(msgspec.Struct, frozen=True):
    """A job on its way into the backend. The client has made its id and checked its limits."""

    id: str
    name: str
    queue: str
    payload: bytes
    priority: int = 5
    """0 to 9, higher first."""
    at: float | None = None
    """Due at this epoch second, or ..."""
    after: float = 0.0
    """... this many seconds from now, by the backend's clock. `at` wins."""
    options: JobOptions = NO_JOB_OPTIONS

    def due_at(self, now: float) -> float:
        """The second it is due, given the backend's time."""
        return now + self.after if self.at is None else self.at

    def compute_digest(self) -> bytes:
        """16 bytes that tell this body (name and payload) from another under the same id."""
        return compute_digest(self.name, self.payload)


def compute_digest(name: str, payload: bytes) -> bytes:
    """The digest of a body: BLAKE2b, 16 bytes, over name, NUL, payload."""
    body = _start_digest(name)
    body.update(payload)
    return body.digest()


def compute_digests(jobs: Sequence[NewJob]) -> list[bytes]:
    """The digests of the bodies of many, in their order; each takes half as long as one alone."""
    begun: dict[str, hashlib.blake2b] = {}
    made = []
    for job in jobs:
        name = begun.get(job.name)
        if name is None:
            name = begun[job.name] = _start_digest(job.name)
        body = name.copy()
        body.update(job.payload)
        made.append(body.digest())
    return made


def _start_digest(name: str) -> hashlib.blake2b:
    """The digest of a body as far as its name goes; the payload comes next."""
    return hashlib.blake2b(name.encode() + b"\0", digest_size=16)


class Enqueued(msgspec.Struct, frozen=True):
    """What became of one job of an enqueue call.

    `created` and `exists` mean that `id` is stored (for a unique key asked with
    `on_duplicate='existing'`, the id of the job that holds it). If any of the call is `conflict`
    (that id has another body) or `taken` (`id` holds the unique key), nothing of the call was
    stored, and the others say `refused`.
    """

    id: str
    outcome: Literal["created", "exists", "conflict", "taken", "refused"]


class Progress(msgspec.Struct, frozen=True):
    """How far a job says it has come: 0.0 to 1.0, and a few words."""

    fraction: float
    message: str = ""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the backend has it. Times are epoch seconds on the backend's clock."""

    id: str
    name: str
    queue: str
    state: State
    priority: int
    payload: bytes | None
    """None once completed or cancelled (its digest is kept), or when not asked for."""
    failures: int = 0
    """Attempts that ended in failure or timeout (since the last replay)."""
    lost: int = 0
    """Attempts whose worker vanished (since the last replay)."""
    due: float
    created_at: float
    started_at: float | None = None
    """When its latest attempt was reserved."""
    finished_at: float | None = None
    reason: str | None = None
    """Why it failed (`Reason`) or was cancelled."""
    history: list[AttemptError] = msgspec.field(default_factory=list)
    """Every attempt that ended badly, oldest first; a replay keeps it."""
    progress: Progress | None = None
    result: bytes | None = None
    """JSON, kept for `keep_results`."""
    cancel_requested: bool = False
    session: str | None = None
    """The session that holds its lease."""
    options: JobOptions = NO_JOB_OPTIONS

    @property
    def attempt(self) -> int:
        """The number of the current attempt, or of the next one; of the last, once finished."""
        ended = self.failures + self.lost
        if self.state is State.FAILED:
            return max(1, ended)
        return ended + 1

    @property
    def error(self) -> AttemptError | None:
        """The latest entry of the history."""
        return self.history[-1] if self.history else None
