"""The life of workers: what the session scripts are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nimburion.backends.redis.encoding import refusing, seq8, token20
from nimburion.backends.server.encoding import encode_json, micros, unpack_id
from nimburion.core.errors import SessionLost
from nimburion.core.job import AttemptError
from nimburion.core.lease import SUSPECT_AFTER, Lease, Token
from nimburion.core.operations import Rescued
from nimburion.core.session import Gate, Orders, Session

_pack = msgspec.msgpack.Encoder().encode
_LOSS = AttemptError(0, "lost", "WorkerLost", "its worker vanished")


@refusing
def opening_of(session: Session) -> list[bytes]:
    """What `open_session.lua` takes."""
    limits: list[object] = []
    for name in session.names:
        limits += (name, session.limits.get(name, False))
    ttl = b"%d" % micros(session.ttl)
    return [session.id.encode(), ttl, encode_json(session), _pack(limits)]


def check_alive(answer: bytes, session_id: str) -> None:
    """Raise `SessionLost` when that is what the server said."""
    if answer == b"lost":
        raise SessionLost(session_id)


def orders_of(answer: list[Any], session_id: str) -> Orders:
    """What `beat.lua` answered.

    Raises:
        SessionLost: the session is not alive.
    """
    if answer[0] == b"lost":
        raise SessionLost(session_id)
    _, wanted, paused, gates = answer
    return Orders(
        cancel=[
            _lease_of(field, token, job_id)
            for field, token, job_id in zip(wanted[::3], wanted[1::3], wanted[2::3], strict=True)
        ],
        paused=sorted(queue.decode() for queue in paused),
        gates={
            name.decode(): Gate(int(limit), int(held))
            for name, limit, held in zip(gates[::3], gates[1::3], gates[2::3], strict=True)
        },
    )


def _lease_of(field: bytes, token: bytes, job_id: bytes) -> Lease:
    fence = int.from_bytes(token[:4], "big")
    return Lease(unpack_id(job_id), Token(fence, token[4:]), int.from_bytes(field, "big"))


def releasing_of(
    session_id: str, leases: Sequence[Lease], nonce: bytes | None, most: int
) -> list[bytes]:
    """What `release.lua` takes."""
    wanted = b"".join([seq8(lease.ref) + token20(lease) for lease in leases])
    return [session_id.encode(), wanted, nonce or b"", b"%d" % most]


def closing_of(session_id: str, running: Sequence[Lease], most: int) -> list[bytes]:
    """What `close_session.lua` takes."""
    kept = b"".join([seq8(lease.ref) + token20(lease) for lease in running])
    return [session_id.encode(), kept, b"%d" % most]


def rescuing_of(limit: int, max_lost: int) -> list[bytes]:
    """What `rescue.lua` takes. It knows the number of each attempt, and puts it in."""
    before, after = encode_json(_LOSS).split(b'"attempt":0', 1)
    numbers = [b"%d" % limit, b"%d" % max_lost]
    return [*numbers, before + b'"attempt":', after, b"%d" % SUSPECT_AFTER]


def rescued_of(answers: Sequence[list[Any]]) -> Rescued:
    """What one or more calls of `rescue.lua` answered, together."""
    returned, failed, cancelled = (
        [unpack_id(job_id) for answer in answers for job_id in answer[place]] for place in range(3)
    )
    return Rescued(returned, failed, cancelled, more=bool(answers[-1][3]))
