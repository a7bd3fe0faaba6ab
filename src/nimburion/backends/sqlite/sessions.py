"""Sessions of workers: open, heartbeat, release, close."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.limits import declare_limits, read_lane_limits
from nimburion.backends.sqlite.settle import LeaseRow, release_lease
from nimburion.backends.sqlite.tenants import set_tenant_weight
from nimburion.backends.waiters import EVERY_QUEUE, make_session_name
from nimburion.core.errors import SessionLost
from nimburion.core.lease import Lease, Token
from nimburion.core.session import ConcurrencyLimit, HeartbeatReply, Session, Vitals, WorkerCommand

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
    changed = [declare_limits(db, name, session.limits.get(name, {})) for name in session.names]
    for tenant, weight in session.weights.items():
        set_tenant_weight(db, tenant, weight)
    if any(changed):
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
    limits = read_lane_limits(db)
    return HeartbeatReply(
        cancel=[
            Lease(job_id, Token(fence, nonce), seq)
            for seq, job_id, fence, nonce in db.run("list_cancel_requests", session.session)
        ],
        paused=[queue for (queue,) in db.run("list_paused_queues", db.now)],
        limits={
            name: ConcurrencyLimit(lane.limit.concurrency, lane.use.in_use)
            for name, lane in limits.items()
            if name in names and lane.limit.concurrency is not None
        },
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
            release_lease(db, held, settles=True, unstarted=True)


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
        else:
            release_lease(db, held, settles=False, unstarted=False)
    db.run("mark_session_left" if left else "end_session", session.session, db.now)


def read_leases(rows: Iterable[tuple[object, ...]]) -> list[LeaseRow]:
    """Read all rows of a statement that lists leases, before transitions change that table."""
    return [LeaseRow(*row) for row in rows]  # type: ignore[arg-type]
