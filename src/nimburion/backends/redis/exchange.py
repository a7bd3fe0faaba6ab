"""The exchange: encode the arguments and decode the reply of `exchange.lua`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from nimburion.backends.redis.encoding import (
    decode_options,
    decode_time,
    encode_fingerprint,
    encode_reason,
    encode_seq,
    encode_time,
    encode_token,
    reject_unstorable_text,
)
from nimburion.backends.redis.record_format import (
    DELIVERY,
    FLAG_OPTIONS,
    FLAG_TENANT,
    FLAG_UNIQUE_KEY,
    JOB_HEAD,
    KIND_CANCELLED,
    KIND_COMPLETED,
    KIND_COMPLETED_WITH_RESULT,
    KIND_FAILED,
    KIND_KEPT,
    KIND_KEPT_WITH_RESULT,
    KIND_PROGRESSED,
    KIND_RATE_LIMITED,
    KIND_RECORDED,
    KIND_RELEASED,
    KIND_RETRIED,
    KIND_SNOOZED,
    KIND_SNOOZED_UNSTARTED,
    KIND_SPENT,
    KIND_SUSPENDED,
    KIND_UNSTARTED,
    NEVER,
    PROGRESS,
    RECORDED_STEP,
    SEQ,
    SETTLED_ALREADY,
    SETTLED_DONE,
    SETTLED_STALE,
    SOURCE_CODES,
)
from nimburion.backends.redis.runs import decode_small_runs
from nimburion.backends.server.encoding import LaneEncoder, decode_id, encode_id, encode_json
from nimburion.core.errors import OutOfOrder, SessionLost, Unstorable
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.flows import SourceKind
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.runs import split_signal_source
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
    Suspended,
)
from nimburion.core.timing.clock import to_micros

_RESULTS_BY_CODE = {
    SETTLED_DONE[0]: Settled.DONE,
    SETTLED_ALREADY[0]: Settled.ALREADY,
    SETTLED_STALE[0]: Settled.STALE,
}
_ID_OFFSET = JOB_HEAD.size
_MAX_NUMBER = (1 << 53) - 1
"""The largest number in use: Lua represents integers exactly up to this value."""
_MAX_ENTRY = (1 << 32) - 1
"""The largest number of a step or a signal."""
_MAX_NAME_BYTES = (1 << 16) - 1 - SEQ.size
"""The largest name of a signal for which a run waits."""
_MAX_LANE_INDEX = (1 << 16) - 1
"""The largest index in a reply: a lease stores it in two bytes."""
_pack = msgspec.msgpack.Encoder().encode


@reject_unstorable_text
def encode_arguments(
    session_id: str,
    number: int,
    settlements: Sequence[Settlement],
    request: ReserveRequest,
    lane_encoder: LaneEncoder[msgspec.Raw],
    *,
    handle: str = "",
    registered: Sequence[str] = (),
) -> list[bytes]:
    """Return the arguments of the script in their order. `handle` and `registered` are those of
    `RedisNotifications`.

    Raises:
        Unstorable: a delay or a text of a settlement cannot be stored; nothing was sent.
    """
    records: list[bytes] = []
    extras: list[bytes] = []
    for settlement in settlements:
        kind, more = _encode_settlement(settlement)
        records.append(kind + encode_seq(settlement.lease.ref) + encode_token(settlement.lease))
        if more:
            extras += more
    return [
        session_id.encode(),
        min(max(0, number), _MAX_NUMBER).to_bytes(8, "big"),
        request.nonce,
        encode_request(request, lane_encoder, handle, registered),
        b"".join(records),
        *extras,
    ]


def _encode_settlement(  # noqa: C901, PLR0911 - one for each kind
    settlement: Settlement,
) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the kind of a settlement and its data other than the lease."""
    match settlement:
        case Completed():
            return _encode_completed(settlement)
        case Retried():
            return KIND_RETRIED, (
                encode_time(max(0, to_micros(settlement.delay))),
                encode_json(settlement.error),
            )
        case Failed():
            return KIND_FAILED, (
                encode_reason(settlement.reason),
                encode_json(settlement.error),
                encode_fingerprint(settlement.error.fingerprint),
            )
        case Released():
            return _encode_released(settlement)
        case RateLimited():
            return KIND_RATE_LIMITED, (encode_time(max(0, to_micros(settlement.retry_after))),)
        case Cancelled():
            return KIND_CANCELLED, (encode_reason(settlement.reason),)
        case Progressed():
            return KIND_PROGRESSED, (
                PROGRESS.pack(settlement.fraction) + settlement.message.encode(),
            )
        case Spent():
            return KIND_SPENT, (b"%d" % settlement.units,)
        case Recorded():
            return KIND_RECORDED, (_encode_step(settlement),)
        case Suspended():
            return KIND_SUSPENDED, (_encode_waits(settlement),)


def _encode_step(step: Recorded) -> bytes:
    """Encode a step for `record_step` of `run_data.lua`."""
    takes = min(step.takes or 0, _MAX_ENTRY)
    return RECORDED_STEP.pack(step.number, takes, b"1" if step.forgets else b"0") + step.body


def _encode_waits(suspended: Suspended) -> bytes:
    """Encode what a run waits for, for `suspend_run` of `flow_data.lua`."""
    delay = suspended.delay
    parts = [NEVER if delay is None else encode_time(max(0, to_micros(delay)))]
    for source in sorted(suspended.sources):
        is_signal = source.kind is SourceKind.SIGNAL
        name = split_signal_source(source.id)[1].encode() if is_signal else encode_id(source.id)
        if len(name) > _MAX_NAME_BYTES:
            raise Unstorable(
                f"a signal's name has at most {_MAX_NAME_BYTES} bytes, not {len(name)}"
            )
        parts.append(SOURCE_CODES[source.kind] + len(name).to_bytes(2, "big") + name)
    return b"".join(parts)


def _encode_released(settlement: Released) -> tuple[bytes, tuple[bytes, ...]]:
    if settlement.delay is not None:
        delay = encode_time(max(0, to_micros(settlement.delay)))
        return KIND_SNOOZED_UNSTARTED if settlement.unstarted else KIND_SNOOZED, (delay,)
    return KIND_UNSTARTED if settlement.unstarted else KIND_RELEASED, ()


def _encode_completed(settlement: Completed) -> tuple[bytes, tuple[bytes, ...]]:
    result, keeps = settlement.result, settlement.keep_payload
    if result is None:
        return KIND_KEPT if keeps else KIND_COMPLETED, ()
    return KIND_KEPT_WITH_RESULT if keeps else KIND_COMPLETED_WITH_RESULT, (result,)


def encode_request(
    request: ReserveRequest,
    lane_encoder: LaneEncoder[msgspec.Raw],
    handle: str = "",
    registered: Sequence[str] = (),
) -> bytes:
    """Encode a reserve request for the script."""
    queues = {
        queue: (options.priority, False if options.limit is None else options.limit)
        for queue, options in request.queues.items()
    }
    total, waits_on_stream = min(request.total, _MAX_LANE_INDEX), request.long_poll > 0
    ageing = to_micros(request.ageing)
    # `read_request` of lua/shared/reserve_jobs.lua names these in the same order.
    return _pack(
        (
            total,
            ageing,
            lane_encoder.encode(request),
            queues,
            waits_on_stream,
            request.max_bytes,
            handle,
            request.free_slots,
            registered,
        )
    )


def encode_lanes(request: ReserveRequest) -> msgspec.Raw:
    """Encode the lanes of a request: full name, queue and name of each."""
    parts: list[str] = []
    for lane in request.lanes:
        parts += (f"{lane.queue}\0{lane.name}", lane.queue, lane.name)
    return msgspec.Raw(_pack(parts))


def decode_reply(reply: list[Any], session_id: str, number: int, request: ReserveRequest) -> Reply:
    """Decode the reply of the script.

    Raises:
        SessionLost: the session is not alive.
        OutOfOrder: the backend expects another number.
    """
    if reply[0] == b"lost":
        raise SessionLost(session_id)
    if reply[0] == b"order":
        last = int.from_bytes(reply[1], "big")
        raise OutOfOrder(f"exchange {number} after {last} of session {session_id}")
    _, codes, nonce, now, due, packed, waiting, lanes, bodies, *runs = reply
    deliveries = decode_deliveries(packed, bodies, nonce, lanes) if bodies else []
    if runs:
        for place, run in decode_small_runs(runs[0]).items():
            deliveries[place - 1] = replace(deliveries[place - 1], run=run)
    return Reply(
        [_RESULTS_BY_CODE[code] for code in codes],
        deliveries,
        [request.lanes[place - 1] for place in waiting],
        _decode_time(due) if due else None,
        _decode_time(now),
    )


def _decode_time(time: bytes) -> float:
    return decode_time(int.from_bytes(time, "big"))


def decode_deliveries(
    packed: bytes, bodies: list[bytes], nonce: bytes, lanes: list[bytes]
) -> list[Delivery]:
    """Return the reserved jobs in rank order."""
    names = decode_lane_names(lanes)
    deliveries = []
    for (due, seq, fence, failures, lost), body in zip(
        DELIVERY.iter_unpack(packed), bodies, strict=True
    ):
        lane, created, _, flags, priority, length = JOB_HEAD.unpack_from(body)
        at = _ID_OFFSET + length
        job_id = decode_id(body[_ID_OFFSET:at])
        options = NO_JOB_OPTIONS
        if flags & (FLAG_OPTIONS | FLAG_UNIQUE_KEY):
            options, at = decode_body_options(body, at, flags)
        queue, name = names[lane]
        deliveries.append(
            Delivery(
                Lease(job_id, Token(fence, nonce), seq),
                name,
                queue,
                body[at:],
                priority,
                failures,
                lost,
                decode_time(due),
                decode_time(created),
                options,
            )
        )
    return deliveries


def decode_body_options(body: bytes, at: int, flags: int) -> tuple[JobOptions, int]:
    """Decode the options of a body. Return them with the offset of the byte after them."""
    options = NO_JOB_OPTIONS
    if flags & FLAG_OPTIONS:
        end = at + 4 + int.from_bytes(body[at : at + 4], "big")
        options, at = decode_options(body[at + 4 : end]), end
    if flags & FLAG_TENANT:
        at += 2 + int.from_bytes(body[at : at + 2], "big")
    if flags & FLAG_UNIQUE_KEY:
        at += 18 + int.from_bytes(body[at : at + 2], "big")
        at += 1 + body[at]
    return options, at


def decode_lane_names(lanes: list[bytes]) -> dict[int, tuple[str, str]]:
    """Return a mapping from lane number to queue and job name."""
    names = {}
    for number, full in zip(lanes[::2], lanes[1::2], strict=True):
        queue, _, name = full.decode().partition("\0")
        names[int.from_bytes(number, "big")] = (queue, name)
    return names
