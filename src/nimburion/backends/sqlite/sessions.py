"""The life of workers: sessions, what they are told, and the rescue of what they held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite import transitions
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.reserve import gates_of
from nimburion.backends.sqlite.transitions import CANCELLED, FAILED, Counts, Held
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.errors import SessionLost
from nimburion.core.job import AttemptError, Reason
from nimburion.core.lease import SUSPECT_AFTER, Lease, Token
from nimburion.core.operations import Rescued
from nimburion.core.session import Orders, Session

_LOST = Counts(lost=1)
_encode = msgspec.json.Encoder().encode


class Info(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says of itself, as the file keeps it."""

    host: str = ""
    pid: int = 0
    owner: str = ""
    queues: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


info_of: Callable[[bytes | str], Info] = msgspec.json.Decoder(Info).decode


class Known(NamedTuple):
    """A session as far as its own calls need it."""

    n: int
    info: str
    ttl: float
    left_at: int | None
    dead_at: int | None

    @property
    def alive(self) -> bool:
        """Whether it may go on."""
        return self.left_at is None and self.dead_at is None


def open_session(db: Database, session: Session) -> None:
    """See `Backend.open_session`."""
    if known(db, session.id) is not None:
        beat(db, session.id)
        return
    info = Info(session.host, session.pid, session.owner, session.queues, session.names)
    db.run(
        "session_open", session.id, _encode(info).decode(), session.ttl,
        db.boot + session.ttl, db.boot_id, db.now,
    )  # fmt: skip
    for name in session.names:
        if name in session.limits:
            db.run("gate_set", name, session.limits[name])
        else:
            db.run("gate_drop", name)
    if session.names:
        db.ring([EVERY_QUEUE])  # others may wait for a limit that has changed


def known(db: Database, session_id: str) -> Known | None:
    """The session, dead or alive."""
    row = db.one("session_get", session_id)
    return None if row is None else Known(*row)


def beat(db: Database, session_id: str) -> Orders:
    """See `Backend.beat`."""
    session = known(db, session_id)
    if session is None or not session.alive:
        raise SessionLost(session_id)
    db.run("session_beat", session.n, db.boot + session.ttl, db.boot_id)
    names = set(info_of(session.info).names)
    gates = gates_of(db.value("gates"))
    return Orders(
        cancel=[
            Lease(job_id, Token(fence, nonce), seq)
            for seq, job_id, fence, nonce in db.run("session_cancels", session.n)
        ],
        paused=[queue for (queue,) in db.run("paused_all")],
        gates={name: gate for name, gate in gates.items() if name in names},
    )


def release(db: Database, session_id: str, leases: Sequence[Lease], nonce: bytes | None) -> None:
    """See `Backend.release`."""
    session = known(db, session_id)
    if session is None or not session.alive:
        return
    wanted = {(lease.ref, lease.token.fence, lease.token.nonce) for lease in leases}
    for held in leases_of(db.run("session_leases", session.n)):
        if held.nonce == nonce or (held.seq, held.fence, held.nonce) in wanted:
            if held.cancel:
                transitions.finish_held(db, held, CANCELLED, nonce=held.nonce)
            else:
                transitions.wait_again(db, held, nonce=held.nonce)


def close_session(db: Database, session_id: str, running: Sequence[Lease]) -> None:
    """See `Backend.close_session`."""
    session = known(db, session_id)
    if session is None or session.dead_at is not None:
        return
    kept = {(lease.ref, lease.token.fence, lease.token.nonce) for lease in running}
    left = False
    for held in leases_of(db.run("session_leases", session.n)):
        if (held.seq, held.fence, held.nonce) in kept:
            left = True
        elif held.cancel:
            transitions.finish_held(db, held, CANCELLED)
        else:
            transitions.wait_again(db, held)
    db.run("session_left" if left else "session_dead", session.n, db.now)


def leases_of(rows: Iterable[tuple[object, ...]]) -> list[Held]:
    """The rows of a statement that lists leases; read whole, as the moves change that table."""
    return [Held(*row) for row in rows]  # type: ignore[arg-type]


def rescue(db: Database, limit: int, max_lost: int) -> Rescued:
    """See `Backend.rescue`."""
    db.run("session_expire", db.now, db.boot, db.boot_id)
    rows = db.run("rescue_leases", limit + 1, SUSPECT_AFTER).fetchall()
    rescued = Rescued([], [], [], more=len(rows) > limit)
    for *fields, spared, job_id, lost, failures in rows[:limit]:
        held = Held(*fields)
        if spared:
            give_back(db, held, job_id, rescued, transitions.NONE)
        elif lost + 1 >= max_lost and not held.cancel:
            note_loss(db, held, failures + lost + 1)
            transitions.finish_held(db, held, FAILED, reason=Reason.LOST, counts=_LOST)
            rescued.failed.append(job_id)
        else:
            note_loss(db, held, failures + lost + 1)
            give_back(db, held, job_id, rescued, _LOST)
    return rescued


def give_back(db: Database, held: Held, job_id: str, rescued: Rescued, counts: Counts) -> None:
    """Let a job wait again in its old place, unless somebody wants it cancelled."""
    if held.cancel:
        transitions.finish_held(db, held, CANCELLED, counts=counts)
        rescued.cancelled.append(job_id)
    else:
        transitions.wait_again(db, held, counts=counts)
        rescued.returned.append(job_id)


def note_loss(db: Database, held: Held, attempt: int) -> None:
    """The attempt whose worker vanished joins the history."""
    error = AttemptError(attempt, "lost", "WorkerLost", "its worker vanished")
    transitions.add_history(db, held.seq, error)
