"""The contract of a backend: six narrow protocols, and `Backend`, their union; and a seventh,
`Joining`, for backends that can be part of a caller's own transaction.

Rules that hold for every operation, on every backend:

- Each call is one atomic step: all of it is applied, or none.
- Times are epoch seconds on the backend's own clock; nothing a caller's clock says is believed.
- Batches first: one call carries many jobs. Bounded: `limit` is the most it will touch.
- Errors are `BackendError`s of `nimburion.core.errors`. Where the answer is lost
  (`BackendUnavailable`, outcome `unknown`) the same call may be repeated: `enqueue` by its ids,
  `exchange` by its number, settlements by their tokens, all others by being repeatable.
- Calls are made on the event loop that opened the handle. `sibling()` makes a handle for another.

The cases that prove a backend are `nimburion.testing.contract`; the reasons are in decision 0001.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from nimburion.core.checks import CheckResult
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.job import Enqueued, JobRecord, NewJob, State
from nimburion.core.lease import Lease
from nimburion.core.operations import Cancellation, Promoted, Replayed, Rescued, Retention
from nimburion.core.queries import EVERY_JOB, JobFilter, Page, QueueInfo
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord
from nimburion.core.session import HeartbeatReply, Session, SessionInfo
from nimburion.core.settlement import Settlement
from nimburion.core.transactions import CallerConnection, Transaction


class Capabilities(msgspec.Struct, frozen=True):
    """What a backend can do beyond the contract's core. Read it; never test `isinstance`."""

    durable: bool
    """Survives the death of every process that uses it."""
    notifies: bool
    """`wait` wakes for jobs that other processes enqueue, not only by timeout."""
    supports_transactions: bool
    """Can enqueue and complete inside a caller's own transaction: is a `Joining` too."""
    atomic_batch: int | None
    """The most jobs of one enqueue call that are stored in one step; None: all of them."""
    shared: bool = True
    """Other processes can open the same data."""
    supports_long_poll: bool = False
    """`exchange` waits for a job for as long as `ReserveRequest.long_poll` says, and the backend
    has `hurry`: a job then begins one round trip sooner than by `wait`."""
    out_of_process: bool = False
    """Its work is done by another process: a worker should have jobs to run while it answers."""
    roles: bool = False
    """Knows roles: `grant` lets another one do what workers do."""
    lazy_batches: bool = False
    """`enqueue` looks at the last jobs of a large call while the first are being stored: they may
    be made as they are looked at, and what that raises refuses the call."""


class Producing(Protocol):
    """The way in."""

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Store jobs; one result each, in their order.

        Idempotent on id: an id that is kept, in any state, answers `exists` when name and payload
        are the same (nothing runs again), else `conflict`. The unique key is decided inside: held
        by another job it answers `exists` with that job's id, or `taken`, as `on_duplicate` asks.
        Any `conflict` or `taken` refuses the call: nothing of it is stored. Rings the queues.
        """
        ...

    async def cancel(self, job_id: str) -> Cancellation:
        """Cancel a waiting job at once, or ask the worker of a processing one. `JobNotFound`."""
        ...


class Consuming(Protocol):
    """What workers do."""

    async def open_session(self, session: Session) -> None:
        """Begin a session that lives `session.ttl` seconds after each heartbeat. For each of its
        names the gate becomes what `session.limits` says; a new gate counts what is processing now.
        Opening the same id again is a heartbeat."""
        ...

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        """Settle what is done and reserve what may run, in one atomic step.

        First the settlements, in order, then what became due is promoted, then `want` is served:
        what a settlement frees (a gate, a retry without delay) can be handed out by the same call.
        Never handed out: jobs not due, of paused queues, or over their gate. `number` begins at 1
        and rises by one; any but the next and the last is `OutOfOrder`. Repeating the last one
        applies no settlement, whatever it carries, and answers the same; only deliveries over its
        `want.max_bytes` go back to the line. So a caller may repeat an exchange of unknown outcome
        with a part of its settlements: the results say how many were applied. `SessionLost` when
        the session is not alive: nothing was written, and none of its leases is valid.
        `Unstorable` when a settlement's data is refused: nothing was applied
        and the number is still free.
        """
        ...

    async def heartbeat(self, session_id: str) -> HeartbeatReply:
        """Say that the process lives: the session expires `ttl` from now. Revives a session that
        is overdue but not rescued; `SessionLost` afterwards."""
        ...

    async def release(
        self, session_id: str, leases: Sequence[Lease] = (), nonce: bytes | None = None
    ) -> None:
        """Give back leases outside the numbered exchanges, each as `Released` without a delay does.

        Given back are `leases`, and with `nonce` every lease whose token has this random half: what
        an exchange handed out whose reply was not read. A repeat of that exchange brings them no
        more, and a later settlement of them is `already`. What the session does not hold under the
        very token is passed over; so is all of it when the session is not alive. Repeatable.
        """
        ...

    async def close_session(self, session_id: str, running: Sequence[Lease] = ()) -> None:
        """End a session. Its leases are released, but for those `running`: with any, the session
        stays as `left` until it expires, and its rescue counts no loss. Closing a session that is
        gone does nothing."""
        ...

    async def rescue(self, limit: int, *, max_lost: int) -> Rescued:
        """Take back up to `limit` jobs of sessions that expired. Each counts one loss, unless its
        session had `left`, or the job is a suspect (`SUSPECT_AFTER` losses) and its session held
        other jobs too: then it had not begun. At `max_lost` losses it fails with reason `lost`,
        else it waits again in its old place. The session dies in the same step, also when more of
        its jobs are left."""
        ...

    async def promote(self, limit: int) -> Promoted:
        """Make up to `limit` scheduled jobs that are due reservable, earliest first."""
        ...

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """Return when one of the queues is rung, or after `timeout` seconds. A hint: it may wake
        for nothing and it may miss; a poll stands behind it."""
        ...


class LongPolling(Protocol):
    """What a backend offers besides, whose capabilities say `patient`."""

    def interrupt_long_poll(self) -> None:
        """Let the exchange that waits answer now. A hint: it may come too late, or not arrive."""
        ...


class Maintaining(Protocol):
    """What operators do."""

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """Make up to `limit` failed jobs pending again. Those that are not failed are passed over,
        so doing it twice does nothing the second time."""
        ...

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """Forget up to `limit` finished jobs for good; their ids. Unfinished ones are passed
        over."""
        ...

    async def pause(self, queue: str, *, paused: bool) -> None:
        """From now on, hand out nothing of this queue; or do so again, and ring it."""
        ...

    async def prune(self, keep: Retention, limit: int) -> int:
        """Forget what is older than `keep` says, at most `limit` records and results; how many.
        Less than `limit`: nothing is left to prune."""
        ...


class Inspecting(Protocol):
    """Reading; changes nothing, executes nothing, takes no lock that delays a worker."""

    async def get(self, job_id: str) -> JobRecord:
        """The whole record. `JobNotFound`."""
        ...

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        """Newest enqueue first; `after` is the `next` of the page before. Stable under inserts."""
        ...

    async def counts(self, queue: str | None = None) -> dict[State, int]:
        """How many jobs are kept in each state; every state is a key."""
        ...

    async def queues(self) -> list[QueueInfo]:
        """Every queue that holds an unfinished job or is paused, by name."""
        ...

    async def sessions(self) -> list[SessionInfo]:
        """Every session that is not dead, oldest first."""
        ...


class ScheduleCases(Protocol):
    """Storage for the scheduler."""

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """Add or replace; `last_tick`, `last_job` and `paused` of a kept one stay as they are."""
        ...

    async def list_schedules(self) -> list[ScheduleRecord]:
        """All of them, by name."""
        ...

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Stop or resume one; False when there is none of that name."""
        ...

    async def delete_schedule(self, name: str) -> bool:
        """Forget one; False when there is none of that name."""
        ...

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """Decide one tick: move the schedule's last tick from `expected_last` to `tick` by
        compare-and-swap and enqueue `job`, in one step. Overlap with the schedule's previous job:
        `allow` both; `skip` while it is unfinished; `queue_one`: skip while it has not started;
        `cancel_previous` as `cancel` does."""
        ...


class Lifecycle(Protocol):
    """Coming and going."""

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        ...

    def describe(self) -> str:
        """One line that names the backend, secrets left out: `SQLite /srv/app/nimburion.db`."""
        ...

    def new_handle(self) -> Backend:
        """Another handle on the same data, not open yet, to be opened on a loop of its own."""
        ...

    async def open(self) -> None:
        """Connect, create or migrate what may be migrated, check the format. Repeatable."""
        ...

    async def close(self) -> None:
        """Let go of everything. Repeatable."""
        ...

    async def exists(self) -> bool:
        """Whether there is data to open. False where `open` would make it at a place that holds
        nothing yet, like a file in the wrong folder. The backend need not be open, and nothing is
        created. A backend with a server returns True: only `open` asks the server."""
        ...

    async def ping(self) -> None:
        """Return when the backend answers."""
        ...

    async def now(self) -> float:
        """The time on the backend's clock, in epoch seconds. One cheap call that changes
        nothing."""
        ...

    async def check(self) -> list[CheckResult]:
        """What an operator should know of an open backend, in an order that stays the same: where
        it is, what would be lost and when, room, speed, clock. Changes nothing. What the backend
        refuses meanwhile is not raised but said, as an `error`."""
        ...

    async def plan(self) -> list[str]:
        """What `migrate` would do now, in words, without doing it; empty: nothing. The backend need
        not be open; close it afterwards. `FormatMismatch` when its format is too new."""
        ...

    async def migrate(self) -> list[str]:
        """Bring the backend's format up to date; what was done, in words. The backend need not be
        open; close it afterwards. Any number may do it at once, while others work."""
        ...

    async def grant(self, role: str) -> list[str]:
        """Let another role of the backend do what workers do, and no more; what was granted, in
        words. The backend need not be open; close it afterwards. `NotSupported` where a backend
        knows no roles; `ConfigurationError` where there is no such role, or ours may not grant."""
        ...


class Backend(Producing, Consuming, Maintaining, Inspecting, ScheduleCases, Lifecycle, Protocol):
    """A whole backend."""


class Transactional(Protocol):
    """What a backend has beside `Backend` where its capabilities say `supports_transactions`.

    Whatever happens in a caller's transaction is visible to nobody else before its commit, and
    never happened after its rollback. `UnusableConnection` where the connection is of no driver
    that the backend knows, not of this backend's own database, or has no transaction open.
    """

    async def enqueue_in(
        self, connection: CallerConnection, jobs: Sequence[NewJob]
    ) -> list[Enqueued]:
        """As `enqueue`, inside the transaction of this connection, which the caller commits. The
        queues are rung after the commit. A refused call writes nothing and leaves the transaction
        usable; so does every error but `BackendUnavailable`, after which it must be rolled back."""
        ...

    def transaction(self, connection: CallerConnection | None) -> Transaction:
        """A transaction to complete a job in: on this connection, or on one of the backend's
        own."""
        ...
