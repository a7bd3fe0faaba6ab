"""The life of workers: what the session functions are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.postgres.encoding import int4, refusing, seq_of, text_of
from nimburion.backends.server.encoding import encode_json, micros, unpack_id
from nimburion.core.errors import SessionLost
from nimburion.core.job import AttemptError
from nimburion.core.lease import Lease, Token
from nimburion.core.operations import Rescued
from nimburion.core.session import Gate, Orders, Session

_LOSS = AttemptError(0, "lost", "WorkerLost", "its worker vanished")


@refusing
def opening_of(session: Session) -> list[Any]:
    """What `open_session_1` takes behind the times."""
    names = [text_of(name) for name in dict.fromkeys(session.names)]
    return [
        session.id,
        micros(session.ttl),
        encode_json(session).decode(),
        names,
        [session.limits.get(name) for name in names],
    ]


def check_alive(alive: object, session_id: str) -> None:
    """Raise `SessionLost` when that is what the server said."""
    if not alive:
        raise SessionLost(session_id)


def orders_of(rows: list[Any], session_id: str) -> Orders:
    """What `beat_1` answered.

    Raises:
        SessionLost: the session is not alive.
    """
    if not rows:
        raise SessionLost(session_id)
    seqs, ids, fences, nonces, paused, names, bounds, held = rows[0]
    told = zip(seqs or (), ids or (), fences or (), nonces or (), strict=True)
    limits = zip(names or (), bounds or (), held or (), strict=True)
    return Orders(
        cancel=[Lease(unpack_id(i), Token(fence, nonce), seq) for seq, i, fence, nonce in told],
        paused=paused,
        gates={name: Gate(bound, count) for name, bound, count in limits},
    )


def releasing_of(session_id: str, leases: Sequence[Lease], nonce: bytes | None) -> list[Any]:
    """What `release_1` takes behind the time."""
    return [*closing_of(session_id, leases), nonce]


def closing_of(session_id: str, running: Sequence[Lease]) -> list[Any]:
    """What `close_session_1` takes behind the time."""
    return [
        session_id,
        [seq_of(lease.ref) for lease in running],
        [int4(lease.token.fence) for lease in running],
        [lease.token.nonce for lease in running],
    ]


def rescuing_of(limit: int, max_lost: int) -> list[Any]:
    """What `rescue_1` takes behind the times. It puts the number of each attempt in."""
    before, after = encode_json(_LOSS).decode().split('"attempt":0', 1)
    return [limit, max_lost, before + '"attempt":', after]


def rescued_of(rows: list[Any]) -> Rescued:
    """What `rescue_1` answered."""
    returned, failed, cancelled = (
        [unpack_id(job_id) for job_id, letter, _ in rows[:-1] if letter == one] for one in "rfc"
    )
    return Rescued(returned, failed, cancelled, more=rows[-1][1] == "m")
