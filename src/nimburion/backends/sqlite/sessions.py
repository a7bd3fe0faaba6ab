"""Sessions of workers: open, heartbeat, release, close; and the rescue of their jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite import transitions
from nimburion.backends.sqlite.connection.database import MICRO, Database
from nimburion.backends.sqlite.limit_changes import declare_limits
from nimburion.backends.sqlite.rate_limits import give_units_back
from nimburion.backends.sqlite.reserve import read_limits
from nimburion.backends.sqlite.tenants import set_tenant_weight
from nimburion.backends.sqlite.transitions import CANCELLED, FAILED, Increments, LeaseRow
from nimburion.backends.waiters import EVERY_QUEUE, make_session_name
from nimburion.core.errors import SessionLost
from nimburion.core.job import AttemptError, Reason
from nimburion.core.lease import SUSPECT_AFTER, Lease, Token
from nimburion.core.limit_changes import DeclaredLimits
from nimburion.core.operations import Rescued
from nimburion.core.session import HeartbeatReply, Session, Vitals, WorkerCommand
from nimburion.core.text.fingerprints import LOST_FINGERPRINT

_LOST_INCREMENT = Increments(lost=1)
_encode = msgspec.json.Encoder().encode


class SessionDescription(msgspec.Struct, frozen=True, omit_defaults=True):
    """The description that a worker gives of itself, stored as JSON."""

    host: str = ""
    pid: int = 0
    owner: str = ""
    queues: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


decode_description: Callable[[bytes | str], SessionDescription] = msgspec.json.Decoder(
    SessionDescription
).decode


class SessionRow(NamedTuple):
    """The columns of a session that its own operations need."""

    session: int
    description: str
    ttl: float
    left_at: int | None
    ended_at: int | None
    command: str | None

    @property
    def is_alive(self) -> bool:
        """Whether the session is neither closed nor expired."""
        return self.left_at is None and self.ended_at is None


def open_session(db: Database, session: Session) -> None:
    """See `Consuming.open_session`."""
    if find_session(db, session.id) is not None:
        heartbeat(db, session.id)
        return
    info = SessionDescription(
        session.host, session.pid, session.owner, session.queues, session.names
    )
    db.run(
        "insert_session", session.id, _encode(info).decode(), session.ttl,
        db.boot_time + session.ttl, db.boot_id, db.now,
    )  # fmt: skip
    for name in session.names:
        declared = DeclaredLimits(
            session.limits.get(name), session.rates.get(name), session.keyed_limits.get(name, {})
        )
        declare_limits(db, name, declared)
    for tenant, weight in session.weights.items():
        set_tenant_weight(db, tenant, weight)
    if session.names:
        db.notify([EVERY_QUEUE])  # others may wait for a limit that has changed


def find_session(db: Database, session_id: str) -> SessionRow | None:
    """Return the session, also if it has ended; None if it is unknown."""
    row = db.fetch_one("get_session", session_id)
    return None if row is None else SessionRow(*row)


def heartbeat(db: Database, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
    """See `Consuming.heartbeat`."""
    session = find_session(db, session_id)
    if session is None or not session.is_alive:
        raise SessionLost(session_id)
    reported = None if vitals is None else _encode(vitals).decode()
    db.run("renew_session", session.session, db.boot_time + session.ttl, db.boot_id, reported)
    names = set(decode_description(session.description).names)
    limits = read_limits(db)
    return HeartbeatReply(
        cancel=[
            Lease(job_id, Token(fence, nonce), seq)
            for seq, job_id, fence, nonce in db.run("list_cancel_requests", session.session)
        ],
        paused=[queue for (queue,) in db.run("list_paused_queues", db.now)],
        limits={name: limit for name, limit in limits.items() if name in names},
        command=None if session.command is None else WorkerCommand(session.command),
    )


def send_command(db: Database, session_id: str, command: WorkerCommand | None) -> bool:
    """See `Maintaining.send_command`."""
    text = None if command is None else command.value
    db.notify([make_session_name(session_id)])
    return db.run("send_command", session_id, text).rowcount > 0


def release(db: Database, session_id: str, leases: Sequence[Lease], nonce: bytes | None) -> None:
    """See `Consuming.release`."""
    session = find_session(db, session_id)
    if session is None or not session.is_alive:
        return
    wanted = {(lease.ref, lease.token.fence, lease.token.nonce) for lease in leases}
    for held in read_leases(db.run("list_leases", session.session)):
        if held.nonce == nonce or (held.seq, held.fence, held.nonce) in wanted:
            give_units_back(db, held.lane, held.seq, held.started_at)
            if held.cancel_requested:
                transitions.finish_leased(db, held, CANCELLED, nonce=held.nonce)
            else:
                transitions.requeue(db, held, nonce=held.nonce)


def close_session(db: Database, session_id: str, running: Sequence[Lease]) -> None:
    """See `Consuming.close_session`."""
    session = find_session(db, session_id)
    if session is None or session.ended_at is not None:
        return
    still_running = {(lease.ref, lease.token.fence, lease.token.nonce) for lease in running}
    left = False
    for held in read_leases(db.run("list_leases", session.session)):
        if (held.seq, held.fence, held.nonce) in still_running:
            left = True
        elif held.cancel_requested:
            transitions.finish_leased(db, held, CANCELLED)
        else:
            transitions.requeue(db, held)
    db.run("mark_session_left" if left else "end_session", session.session, db.now)


def read_leases(rows: Iterable[tuple[object, ...]]) -> list[LeaseRow]:
    """Read all rows of a statement that lists leases, before transitions change that table."""
    return [LeaseRow(*row) for row in rows]  # type: ignore[arg-type]


def rescue(db: Database, limit: int, max_lost: int) -> Rescued:
    """See `Consuming.rescue`."""
    expired = db.run("expire_sessions", db.now, db.boot_time, db.boot_id).fetchall()
    # A worker that lives learns that its session has ended; the socket of a dead one is removed.
    db.notify(make_session_name(session_id) for (session_id,) in expired)
    rows = db.run("list_orphaned_leases", limit + 1, SUSPECT_AFTER).fetchall()
    rescued = Rescued([], [], [], more=len(rows) > limit)
    for *fields, spared, job_id, lost, failures, session_id, host in rows[:limit]:
        lease = LeaseRow(*fields)
        loss = make_loss(lease, failures + lost + 1, session_id, host)
        if spared:
            return_or_cancel(db, lease, job_id, rescued, transitions.NO_INCREMENTS)
        elif lost + 1 >= max_lost and not lease.cancel_requested:
            transitions.add_error(db, lease.seq, loss)
            transitions.finish_leased(
                db,
                lease,
                FAILED,
                reason=Reason.LOST,
                increments=_LOST_INCREMENT,
                fingerprint=loss.fingerprint,
            )
            rescued.failed.append(job_id)
        else:
            transitions.add_error(db, lease.seq, loss)
            return_or_cancel(db, lease, job_id, rescued, _LOST_INCREMENT)
    return rescued


def return_or_cancel(
    db: Database, lease: LeaseRow, job_id: str, rescued: Rescued, increments: Increments
) -> None:
    """Requeue a job at its old position, or cancel it if a cancel was requested."""
    if lease.cancel_requested:
        transitions.finish_leased(db, lease, CANCELLED, increments=increments)
        rescued.cancelled.append(job_id)
    else:
        transitions.requeue(db, lease, increments=increments)
        rescued.returned.append(job_id)


def make_loss(lease: LeaseRow, attempt: int, session_id: str, host: str) -> AttemptError:
    """Return the error of an attempt whose worker was lost."""
    return AttemptError(
        attempt,
        "lost",
        "WorkerLost",
        "its worker's session expired",
        started_at=lease.started_at / MICRO,
        session=session_id,
        host=host,
        fingerprint=LOST_FINGERPRINT,
    )
