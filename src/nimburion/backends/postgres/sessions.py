"""Sessions of workers: encode the arguments and decode the rows of the session functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.postgres.encoding import (
    clamp_int4,
    clamp_seq,
    encode_text,
    reject_unstorable_text,
    to_seconds,
)
from nimburion.backends.server.encoding import decode_id, encode_json
from nimburion.core.errors import SessionLost
from nimburion.core.fairness import to_weight_units
from nimburion.core.job import AttemptError
from nimburion.core.lease import Lease, Token
from nimburion.core.limits import LimitRule
from nimburion.core.maintenance import Rescued
from nimburion.core.session import (
    ConcurrencyLimit,
    HeartbeatReply,
    Session,
    Vitals,
    WorkerCommand,
)
from nimburion.core.text.fingerprints import LOST_FINGERPRINT
from nimburion.core.timing.clock import to_micros

_LOST_ERROR = AttemptError(
    0, "lost", "WorkerLost", "its worker's session expired", fingerprint=LOST_FINGERPRINT
)


@reject_unstorable_text
def encode_open_session(session: Session) -> list[Any]:
    """Return the arguments of `open_session_1` after the times."""
    names = [encode_text(name) for name in dict.fromkeys(session.names)]
    limits = {
        encode_text(name): {encode_text(limit): _encode_rule(rule) for limit, rule in rules.items()}
        for name, rules in session.limits.items()
        if rules
    }
    return [
        session.id,
        to_micros(session.ttl),
        encode_text(session.host),
        encode_json(session).decode(),
        names,
        encode_json(limits).decode(),
        [encode_text(tenant) for tenant in session.weights],
        [to_weight_units(weight) for weight in session.weights.values()],
    ]


def _encode_rule(rule: LimitRule) -> tuple[object, ...]:
    """Return a rule as `limit_rule.declared` has it."""
    rate = rule.rate
    if rate is None:
        return (rule.concurrency, None, None, None, None)
    return (rule.concurrency, encode_text(rate.rate), rate.interval, rate.burst, rate.cost)


def check_alive(alive: object, session_id: str) -> None:
    """Raise `SessionLost` if the reply says that the session is not alive."""
    if not alive:
        raise SessionLost(session_id)


@reject_unstorable_text
def encode_vitals(vitals: Vitals | None) -> str | None:
    """Encode vitals as JSON."""
    return None if vitals is None else encode_json(vitals).decode()


def decode_heartbeat(rows: list[Any], session_id: str) -> HeartbeatReply:
    """Decode the rows of the heartbeat function.

    Raises:
        SessionLost: the session is not alive.
    """
    if not rows:
        raise SessionLost(session_id)
    seqs, ids, fences, nonces, paused, names, maxima, in_use, command, size, expiry = rows[0]
    cancelled = zip(seqs or (), ids or (), fences or (), nonces or (), strict=True)
    limits = zip(names or (), maxima or (), in_use or (), strict=True)
    return HeartbeatReply(
        cancel=[
            Lease(decode_id(i), Token(fence, nonce), seq) for seq, i, fence, nonce in cancelled
        ],
        paused=paused,
        limits={name: ConcurrencyLimit(maximum, count) for name, maximum, count in limits},
        command=None if command is None else WorkerCommand(command),
        fleet_size=size,
        next_expiry=to_seconds(expiry),
    )


def encode_release(session_id: str, leases: Sequence[Lease], nonce: bytes | None) -> list[Any]:
    """Return the arguments of `release_leases_1` after the time."""
    return [*encode_close_session(session_id, leases), nonce]


def encode_close_session(session_id: str, running: Sequence[Lease]) -> list[Any]:
    """Return the arguments of `close_session_1` after the time."""
    return [
        session_id,
        [clamp_seq(lease.ref) for lease in running],
        [clamp_int4(lease.token.fence) for lease in running],
        [lease.token.nonce for lease in running],
    ]


def encode_rescue(limit: int, max_lost: int) -> list[Any]:
    """Return the arguments of `rescue_jobs_1` after the times."""
    before, after = encode_json(_LOST_ERROR).decode().split('"attempt":0', 1)
    return [limit, max_lost, before + '"attempt":', after.removesuffix("}")]


def decode_rescued(rows: list[Any]) -> Rescued:
    """Decode the rows of `rescue_jobs_1`."""
    returned, failed, cancelled = (
        [decode_id(job_id) for job_id, letter, _ in rows[:-1] if letter == kind] for kind in "rfc"
    )
    return Rescued(returned, failed, cancelled, more=rows[-1][1] == "m")
