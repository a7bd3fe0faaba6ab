"""Sessions of workers: encode the arguments and decode the replies of the session scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nimburion.backends.redis.encoding import (
    encode_lookup_text,
    encode_seq,
    encode_token,
    reject_unstorable_text,
)
from nimburion.backends.server.encoding import decode_id, encode_json
from nimburion.core.errors import SessionLost
from nimburion.core.fairness import WEIGHT_UNITS, to_weight_units
from nimburion.core.job import AttemptError
from nimburion.core.lease import SUSPECT_AFTER, Lease, Token
from nimburion.core.limits import LimitRule
from nimburion.core.maintenance import Rescued
from nimburion.core.session import (
    ConcurrencyLimit,
    HeartbeatReply,
    Session,
    Vitals,
    WorkerCommand,
    is_stored,
)
from nimburion.core.text.fingerprints import LOST_FINGERPRINT
from nimburion.core.timing.clock import MICRO, to_micros

_pack = msgspec.msgpack.Encoder().encode
_LOST_ERROR = AttemptError(
    0, "lost", "WorkerLost", "its worker's session expired", fingerprint=LOST_FINGERPRINT
)


@reject_unstorable_text
def encode_open_session(session: Session) -> list[bytes]:
    """Return the arguments of `open_session.lua`."""
    declared: list[object] = []
    for name in session.names:
        declared += (name, _encode_rules(session.limits.get(name, {})))
    return [
        session.id.encode(),
        b"%d" % to_micros(session.ttl),
        encode_json(session),
        _pack(declared),
        session.host.encode(),
        _pack(_encode_weights(session.weights)),
    ]


def _encode_weights(weights: dict[str, float]) -> list[object]:
    encoded: list[object] = []
    for tenant, weight in weights.items():
        units = to_weight_units(weight)
        encoded += (tenant, False if units == WEIGHT_UNITS else units)
    return encoded


@reject_unstorable_text
def encode_tenant_weight(tenant: str, weight: float | None) -> list[bytes]:
    """Return the arguments of `set_tenant_weight.lua`."""
    units = WEIGHT_UNITS if weight is None else to_weight_units(weight)
    return [tenant.encode(), b"" if units == WEIGHT_UNITS else b"%d" % units]


def _encode_rules(rules: Mapping[str, LimitRule]) -> object:
    """Return the limits of a job name, or False if it has none."""
    return [_encode_rule(name, rule) for name, rule in sorted(rules.items())] or False


def _encode_rule(name: str, rule: LimitRule) -> tuple[object, ...]:
    maximum = False if rule.concurrency is None else rule.concurrency
    if rule.rate is None:
        return (name, maximum, False, 0, 0, "")
    return (name, maximum, rule.rate.interval, rule.rate.burst, rule.rate.cost, rule.rate.rate)


def check_alive(reply: bytes, session_id: str) -> None:
    """Raise `SessionLost` if the reply says that the session is not alive."""
    if reply == b"lost":
        raise SessionLost(session_id)


@reject_unstorable_text
def encode_heartbeat(session_id: str, vitals: Vitals | None) -> list[bytes]:
    """Return the arguments of `heartbeat.lua`."""
    return [session_id.encode(), b"" if vitals is None else encode_json(vitals)]


def encode_command(session_id: str, command: WorkerCommand | None) -> list[bytes]:
    """Return the arguments of `send_command.lua`."""
    stored = b"1" if is_stored(command) else b""
    return [encode_lookup_text(session_id), b"" if command is None else command.encode(), stored]


def decode_command(reply: bytes | None) -> WorkerCommand | None:
    """Decode the last command to a worker."""
    return None if reply is None else WorkerCommand(reply.decode())


def decode_heartbeat(reply: list[Any], session_id: str) -> HeartbeatReply:
    """Decode the reply of the heartbeat script.

    Raises:
        SessionLost: the session is not alive.
    """
    if reply[0] == b"lost":
        raise SessionLost(session_id)
    _, cancelled, paused, limits, command, fleet_size, next_expiry = reply
    return HeartbeatReply(
        cancel=[
            _decode_lease(field, token, job_id)
            for field, token, job_id in zip(
                cancelled[::3], cancelled[1::3], cancelled[2::3], strict=True
            )
        ],
        paused=sorted(queue.decode() for queue in paused),
        limits={
            name.decode(): ConcurrencyLimit(int(limit), int(in_use))
            for name, limit, in_use in zip(limits[::3], limits[1::3], limits[2::3], strict=True)
        },
        command=decode_command(command or None),
        fleet_size=fleet_size,
        next_expiry=int(next_expiry) / MICRO,
    )


def _decode_lease(field: bytes, token: bytes, job_id: bytes) -> Lease:
    fence = int.from_bytes(token[:4], "big")
    return Lease(decode_id(job_id), Token(fence, token[4:]), int.from_bytes(field, "big"))


def encode_release(
    session_id: str, leases: Sequence[Lease], nonce: bytes | None, most: int
) -> list[bytes]:
    """Return the arguments of `release.lua`."""
    cancelled = b"".join([encode_seq(lease.ref) + encode_token(lease) for lease in leases])
    return [session_id.encode(), cancelled, nonce or b"", b"%d" % most]


def encode_close_session(session_id: str, running: Sequence[Lease], limit: int) -> list[bytes]:
    """Return the arguments of `close_session.lua`."""
    still_running = b"".join([encode_seq(lease.ref) + encode_token(lease) for lease in running])
    return [session_id.encode(), still_running, b"%d" % limit]


_MAX_LOST = (1 << 16) - 1
"""The most losses that the record of a job can count. A job that reaches it fails."""


def encode_rescue(limit: int, max_lost: int) -> list[bytes]:
    """Return the arguments of `rescue.lua`. The script inserts the attempt number, start, session
    and host of each entry.
    """
    before, after = encode_json(_LOST_ERROR).split(b'"attempt":0', 1)
    numbers = [b"%d" % limit, b"%d" % min(max_lost, _MAX_LOST)]
    suspect_after, fingerprint = b"%d" % SUSPECT_AFTER, LOST_FINGERPRINT.encode()
    return [*numbers, before + b'"attempt":', after, suspect_after, fingerprint]


def decode_rescued(replies: Sequence[list[Any]]) -> Rescued:
    """Combine the replies of one or more runs of `rescue.lua`."""
    returned, failed, cancelled = (
        [decode_id(job_id) for answer in replies for job_id in answer[place]] for place in range(3)
    )
    return Rescued(returned, failed, cancelled, more=bool(replies[-1][3]))
