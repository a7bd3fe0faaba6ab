"""Jobs in a backend: the job to enqueue, the stored record, and the states.

States and their allowed transitions are data (`TRANSITIONS`). Every backend, the model and the docs
are checked against this table.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from nimburion.core.errors import DuplicateJob, JobConflict
from nimburion.core.flows import ResultRef, WaitCondition


class State(enum.StrEnum):
    """The state of a job. Members compare equal to their lower-case names."""

    PENDING = "pending"
    """Due, without failures, and waiting for a worker."""
    SCHEDULED = "scheduled"
    """Not due yet, without failures."""
    PROCESSING = "processing"
    """A worker holds its lease."""
    RETRYING = "retrying"
    """Failed at least once and waiting, due or not."""
    SUSPENDED = "suspended"
    """Waits for the end of other jobs of its flow (`JobOptions.conditions`). A durable run waits
    for a flow, a signal or a time.
    """
    COMPLETED = "completed"
    """Its handler returned."""
    FAILED = "failed"
    """A dead letter: kept complete until it is replayed, purged or pruned."""
    CANCELLED = "cancelled"
    """It was cancelled, or expired, before it completed."""

    @property
    def finished(self) -> bool:
        """Whether the job stays in this state unless an operator changes it."""
        return self in FINISHED


FINISHED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
UNFINISHED = frozenset(State) - FINISHED
PROCESSING_ONLY = frozenset({State.PROCESSING})
FAILED_ONLY = frozenset({State.FAILED})

WAITING = frozenset({State.PENDING, State.SCHEDULED, State.RETRYING})

TRANSITIONS: Mapping[str, tuple[frozenset[State], frozenset[State]]] = {
    "enqueue": (
        frozenset(),
        frozenset({State.PENDING, State.SCHEDULED, State.SUSPENDED, State.CANCELLED}),
    ),
    "suspend": (
        frozenset({State.PROCESSING}),
        frozenset({State.SUSPENDED, State.PENDING, State.RETRYING, State.CANCELLED}),
    ),
    "resume": (
        frozenset({State.SUSPENDED}),
        frozenset({State.PENDING, State.SCHEDULED, State.RETRYING}),
    ),
    "become due": (frozenset({State.SCHEDULED}), frozenset({State.PENDING})),
    "reserve": (frozenset({State.PENDING, State.RETRYING}), frozenset({State.PROCESSING})),
    "complete": (frozenset({State.PROCESSING}), frozenset({State.COMPLETED})),
    "retry": (frozenset({State.PROCESSING}), frozenset({State.RETRYING, State.CANCELLED})),
    "fail": (frozenset({State.PROCESSING}), frozenset({State.FAILED})),
    "release": (frozenset({State.PROCESSING}), WAITING | {State.CANCELLED}),
    "rescue": (frozenset({State.PROCESSING}), WAITING | {State.FAILED, State.CANCELLED}),
    "cancel": (UNFINISHED, frozenset({State.CANCELLED})),
    "replay": (frozenset({State.FAILED}), frozenset({State.PENDING})),
    "reopen": (frozenset({State.CANCELLED}), frozenset({State.SUSPENDED})),
}
"""For each operation: the states it takes a job from, and the states it may leave it in.

`retry`, `release`, `suspend` and `rescue` end in `cancelled` if a cancel was requested meanwhile.
`suspend` leaves a job waiting if what it waits for has come. `enqueue` ends in `cancelled` if a
condition of the job cannot be met any more. `reopen` is a part of the replay of a job: it takes the
jobs that were cancelled because that one failed.
"""

DEPENDENCY = "dependency"
"""Why a job was cancelled that waited for the success of another one, which did not complete."""
NOT_NEEDED = "not needed"
"""Why a job was cancelled that waited for a failure, which did not come."""


class Reason(enum.StrEnum):
    """Why a job failed permanently."""

    EXHAUSTED = "exhausted"
    """Its failures exceeded `max_retries`, or its next retry would be too late."""
    PERMANENT = "permanent"
    """Its handler raised an error that no retry can help."""
    LOST = "lost"
    """It lost its worker `max_lost` times."""
    UNREADABLE = "unreadable"
    """Its payload does not match the types of the handler, or is not JSON."""
    UNSTORABLE = "unstorable"
    """The backend cannot store the outcome of its attempt."""
    UNDO_FAILED = "undo_failed"
    """A durable run failed or was cancelled, and what it did could not be undone."""


ErrorKind = Literal[
    "failure", "timeout", "permanent", "lost", "unreadable", "unstorable", "internal"
]


class AttemptError(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error of one attempt. Its texts are already cleaned and shortened."""

    attempt: int
    """The number of the attempt."""
    kind: ErrorKind
    """How it ended: `failure`, `timeout`, `permanent`, `lost`, `unreadable` and others."""
    type: str
    """The name of the class of the exception, or of what went wrong without one."""
    message: str = ""
    """The text of the exception."""
    traceback: str = ""
    """The traceback, shortened."""
    at: float = 0.0
    """Time on the backend's clock, in epoch seconds; set by the backend."""
    started_at: float = 0.0
    """When the attempt started, on the backend's clock as the worker knows it. The worker sets
    this field and the next two. For an attempt that lost its worker, the backend does, and the
    time is that of the reservation.
    """
    session: str = ""
    """The id of the session that ran the attempt."""
    host: str = ""
    """The host of that session."""
    fingerprint: str = ""
    """16 hexadecimal digits that equal errors share (`core.text.fingerprints`)."""
    module: str = ""
    """The module of the exception's class; empty if it is built in or if nothing was raised."""


class AttemptInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a job. Times are epoch seconds on the backend's clock."""

    number: int
    """1 for the first attempt since the last replay."""
    session: str
    """The id of the session that ran it; empty if unknown."""
    host: str
    """The host of that session; empty if unknown."""
    started_at: float | None
    ended_at: float | None
    """None while the attempt runs."""
    outcome: str
    """`processing`, `completed`, `cancelled`, or the `ErrorKind` of its error."""


OnDuplicate = Literal["reject", "existing", "replace"]
"""What an enqueue does if another job holds its unique key.

- `reject`: store nothing; the outcome is `taken`.
- `existing`: store nothing; the outcome is `exists`, with the id of the holder.
- `replace`: give the waiting holder the new payload, options, queue, priority and due time; the
  outcome is `replaced`, with the id of the holder. A holder that does not wait is `taken`.
"""

REPEAT_WINDOW = 600.0
"""Seconds for which a backend recognises the repeat of an enqueue that replaced another job."""


class JobOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Optional, rarely used fields of a job. Backends store them as one JSON object."""

    headers: dict[str, str] = msgspec.field(default_factory=dict)
    tenant: str | None = None
    correlation_id: str | None = None
    unique_key: str | None = None
    """Unique for each job name. Held until the job is finished, or for `unique_for` seconds."""
    unique_for: float | None = None
    unique_while: tuple[State, ...] | None = None
    """The job holds the key only in these states, in the order of `State`. None: until it is
    finished; with `unique_for`, in every state and even after it was deleted. A finished state
    counts only with `unique_for`.
    """
    on_duplicate: OnDuplicate = "reject"
    """What the enqueue of this job does if another job holds the key."""
    max_wait: float | None = None
    """With `on_duplicate='replace'`: the job that is replaced is due at most this many seconds
    after it was first enqueued.
    """
    max_retries: int | None = None
    """Overrides the handler's declaration."""
    timeout: float | None = None
    """Seconds; overrides the handler's declaration."""
    expires: float | None = None
    """Seconds after the due time until which the first attempt must start; overrides the handler's
    declaration."""
    limit_keys: dict[str, str] = msgspec.field(default_factory=dict)
    """The key of the job for each limit that is not of its name or its queue, by limit."""
    cost: int | None = None
    """The units that the job takes of the rates of its keys; None: as declared."""
    tags: tuple[str, ...] = ()
    """Names by which people find the job. They have no other effect."""
    flow: str | None = None
    """The flow to which the job belongs: a member, or a callback."""
    group: str | None = None
    """The group inside the flow that counts the job; None: the flow counts it. Empty: it is a
    callback of the flow, which nothing counts.
    """
    conditions: tuple[WaitCondition, ...] = ()
    """The job is suspended until all of these are met, and is due then. If one cannot be met any
    more, it is cancelled.
    """
    results: dict[str, ResultRef] = msgspec.field(default_factory=dict)
    """The arguments that are results of other jobs, which the worker reads before the handler
    starts. The payload does not have them.
    """
    keeps_none: bool = False
    """Whether the worker stores None as a result too, as `null`: another member takes it, and tells
    it from a result that was removed.
    """
    fair: bool = True
    """Whether the tenants of a queue take turns (`nimburion.core.fairness`). Without a tenant, this
    field has no effect.
    """

    @property
    def counted_flow(self) -> str | None:
        """The flow or the group that counts the job; None: it is no member."""
        return self.flow if self.group is None else self.group or None

    @property
    def fair_tenant(self) -> str | None:
        """The tenant whose turn the job needs; None: the job keeps the order of its lane.

        >>> JobOptions(tenant="acme").fair_tenant, JobOptions(tenant="acme", fair=False).fair_tenant
        ('acme', None)
        """
        return self.tenant if self.fair else None

    @property
    def unique_mode(self) -> str | None:
        """What happened on a duplicate, and how long the job holds its key; None without a key.

        >>> JobOptions(unique_key="k", unique_for=60.0, on_duplicate="existing").unique_mode
        'existing, for 60 s'
        """
        if self.unique_key is None:
            return None
        parts: list[str] = [self.on_duplicate]
        if self.unique_for is not None:
            parts.append(f"for {self.unique_for:g} s")
        if self.unique_while is not None:
            parts.append(f"while {' or '.join(self.unique_while)}")
        if self.unique_for is None and self.unique_while is None:
            parts.append("until it is finished")
        if self.max_wait is not None:
            parts.append(f"due at most {self.max_wait:g} s after the first enqueue")
        return ", ".join(parts)

    @property
    def described_key(self) -> str | None:
        """The unique key with its mode, for people; None without a key."""
        return None if self.unique_key is None else f"{self.unique_key} ({self.unique_mode})"


NO_JOB_OPTIONS = JobOptions()


MIN_PRIORITY = -127
"""The lowest priority that backends store."""
MAX_PRIORITY = 127
"""The highest priority that backends store."""


class NewJob(msgspec.Struct, frozen=True):
    """A job to enqueue. The client has set its id and checked its limits."""

    id: str
    name: str
    queue: str
    payload: bytes
    priority: int = 5
    """`MIN_PRIORITY` to `MAX_PRIORITY`, higher first. The options of `enqueue` allow 0 to 9; the
    rest is for integrations with another scale.
    """
    at: float | None = None
    """The due time in epoch seconds. It takes precedence over `after`."""
    after: float = 0.0
    """Seconds from now until the job is due, on the backend's clock."""
    options: JobOptions = NO_JOB_OPTIONS

    def due_at(self, now: float) -> float:
        """Return the due time in epoch seconds, given the backend's time."""
        return now + self.after if self.at is None else self.at

    def fix_due_time(self, now: float) -> NewJob:
        """Return the job with its due time in place of a delay, which counts from `now`.

        For jobs that the backend stores later: the delay must not begin anew then.
        """
        if self.at is not None or not self.after:
            return self
        return msgspec.structs.replace(self, at=now + self.after, after=0.0)


def sort_states(states: Iterable[State]) -> tuple[State, ...]:
    """Return states without duplicates, in the order of `State`.

    >>> sort_states([State.PROCESSING, State.PENDING])
    (<State.PENDING: 'pending'>, <State.PROCESSING: 'processing'>)
    """
    wanted = set(states)
    return tuple(state for state in State if state in wanted)


class Enqueued(msgspec.Struct, frozen=True):
    """The result of one job of an enqueue call.

    - `created` and `exists`: the job `id` is stored. With a unique key and
      `on_duplicate='existing'`, `id` is the job that holds the key.
    - `replaced`: the job `id` held the unique key and waited; it has the new payload, options,
      queue, priority and due time.
    - `conflict`: a job with this id has another body.
    - `taken`: the job `id` holds the unique key.
    - `refused`: nothing was stored, because another job of the call is `conflict` or `taken`.
    """

    id: str
    outcome: Literal["created", "exists", "replaced", "conflict", "taken", "refused"]


class Progress(msgspec.Struct, frozen=True):
    """The progress that a job reports: a fraction from 0.0 to 1.0, and a short message."""

    fraction: float
    message: str = ""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the backend stores it. Times are epoch seconds on the backend's clock."""

    id: str
    name: str
    queue: str
    state: State
    priority: int
    payload: bytes | None
    """None if it was not requested, after the job is cancelled, and after it is completed without
    `Completed.keep_payload`. The digest is kept.
    """
    failures: int = 0
    """Attempts that ended in failure or timeout, since the last replay."""
    lost: int = 0
    """Attempts that lost their worker, since the last replay."""
    due: float
    created_at: float
    started_at: float | None = None
    """The time when the latest attempt was reserved."""
    finished_at: float | None = None
    reason: str | None = None
    """Why the job failed (`Reason`) or was cancelled."""
    history: list[AttemptError] = msgspec.field(default_factory=list)
    """The errors of all failed attempts, oldest first. A replay keeps them."""
    progress: Progress | None = None
    result: bytes | None = None
    """JSON, kept for `keep_results` seconds."""
    cancel_requested: bool = False
    session: str | None = None
    """The id of the session that holds the lease."""
    ended_by: str | None = None
    """The id of the session that completed, failed or cancelled the job in its last attempt; None
    if no attempt ended it.
    """
    host: str = ""
    """The host of `session` or `ended_by`; empty if the backend no longer knows that session."""
    options: JobOptions = NO_JOB_OPTIONS

    @property
    def attempt(self) -> int:
        """The number of the current or next attempt; once finished, of the last one."""
        ended = self.failures + self.lost
        was_waiting = self.state is State.CANCELLED and self.ended_by is None
        if self.state is State.FAILED or was_waiting:
            return max(1, ended)
        return ended + 1

    @property
    def error(self) -> AttemptError | None:
        """The latest entry of the history, or None."""
        return self.history[-1] if self.history else None

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the error that made the job a dead letter; None for other jobs."""
        return self.error.fingerprint if self.state is State.FAILED and self.error else None

    @property
    def attempts(self) -> list[AttemptInfo]:
        """Every attempt that has started, oldest first: who ran it, when, and how it ended.

        A release and a snooze count nothing, so they are no attempts.
        """
        attempts = [
            AttemptInfo(
                number=error.attempt,
                session=error.session,
                host=error.host,
                started_at=error.started_at or None,
                ended_at=error.at,
                outcome=error.kind,
            )
            for error in self.history
        ]
        in_history = self.state is State.FAILED
        if self.state is State.PROCESSING or (self.ended_by is not None and not in_history):
            attempts.append(
                AttemptInfo(
                    number=self.attempt,
                    session=self.session or self.ended_by or "",
                    host=self.host,
                    started_at=self.started_at,
                    ended_at=self.finished_at,
                    outcome=self.state.value,
                )
            )
        return attempts


def require_stored(job: NewJob, result: Enqueued) -> str:
    """Return the id of a stored job. Raises `JobConflict` or `DuplicateJob` if there is none."""
    match result.outcome:
        case "conflict":
            raise JobConflict(job.id)
        case "taken":
            raise DuplicateJob(job.name, job.options.unique_key or "", result.id)
        case _:
            return result.id
