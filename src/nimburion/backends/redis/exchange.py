"""The exchange: what `exchange.lua` is asked, and what it answers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from nimburion.backends.redis.encoding import (
    KEY,
    OPTIONS,
    decode_options,
    reason_of,
    refusing,
    seconds_of,
    seq8,
    time8,
    token20,
)
from nimburion.backends.server.encoding import encode_json, micros, unpack_id
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.exchange import Reply, Want
from nimburion.core.job import NO_OPTIONS, Options
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settled,
    Settlement,
)

_RESULTS = {100: Settled.DONE, 97: Settled.ALREADY, 115: Settled.STALE}
_HEAD = struct.Struct(">IQ8xBB16xB")
_TOLD = struct.Struct(">QQIIH")
_AFTER_ID = _HEAD.size
_MOST = (1 << 53) - 1
"""No number is larger: up to here Lua's numbers are exact."""
_MOST_PLACES = (1 << 16) - 1
"""A lease says its place in the reply in two bytes."""
_pack = msgspec.msgpack.Encoder().encode


@refusing
def arguments_of(
    session_id: str, number: int, settlements: Sequence[Settlement], want: Want
) -> list[bytes]:
    """What the script takes, in its order.

    Raises:
        Unstorable: a delay or a text of a settlement cannot be stored; nothing was sent.
    """
    records: list[bytes] = []
    extras: list[bytes] = []
    for one in settlements:
        kind, more = _settlement(one)
        records.append(kind + seq8(one.lease.ref) + token20(one.lease))
        if more:
            extras += more
    return [
        session_id.encode(),
        min(max(0, number), _MOST).to_bytes(8, "big"),
        want.nonce,
        want_of(want),
        b"".join(records),
        *extras,
    ]


def _settlement(one: Settlement) -> tuple[bytes, tuple[bytes, ...]]:
    """The letter of a settlement, and what it brings besides its lease."""
    match one:
        case Completed():
            return (b"c", ()) if one.result is None else (b"C", (one.result,))
        case Retried():
            return b"r", (time8(max(0, micros(one.delay))), encode_json(one.error))
        case Failed():
            return b"f", (reason_of(one.reason), encode_json(one.error))
        case Released():
            return (b"l", ()) if one.delay is None else (b"s", (time8(max(0, micros(one.delay))),))
        case Cancelled():
            return b"x", (reason_of(one.reason),)
        case Progressed():
            return b"p", (struct.pack(">d", one.fraction) + one.message.encode(),)


def want_of(want: Want) -> bytes:
    """A request as the script reads it."""
    lanes: list[str] = []
    for lane in want.lanes:
        lanes += (f"{lane.queue}\0{lane.name}", lane.queue, lane.name)
    queues = {
        queue: (terms.priority, False if terms.cap is None else terms.cap)
        for queue, terms in want.queues.items()
    }
    total, waits = min(want.total, _MOST_PLACES), want.patience > 0
    return _pack((total, micros(want.ageing), lanes, queues, waits, want.max_bytes))


def reply_of(answer: list[Any], session_id: str, number: int, want: Want) -> Reply:
    """The answer in the words of the contract.

    Raises:
        SessionLost: the session is not alive.
        OutOfOrder: another number is due.
    """
    if answer[0] == b"lost":
        raise SessionLost(session_id)
    if answer[0] == b"order":
        last = int.from_bytes(answer[1], "big")
        raise OutOfOrder(f"exchange {number} after {last} of session {session_id}")
    _, letters, nonce, now, due, told, waiting, lanes, bodies = answer
    return Reply(
        [_RESULTS[letter] for letter in letters],
        deliveries_of(told, bodies, nonce, lanes) if bodies else [],
        [want.lanes[place - 1] for place in waiting],
        _seconds(due) if due else None,
        _seconds(now),
    )


def _seconds(time: bytes) -> float:
    return seconds_of(int.from_bytes(time, "big"))


def deliveries_of(
    told: bytes, bodies: list[bytes], nonce: bytes, lanes: list[bytes]
) -> list[Delivery]:
    """What was handed out, in rank order."""
    names = names_of(lanes)
    deliveries = []
    for (due, seq, fence, failures, lost), body in zip(
        _TOLD.iter_unpack(told), bodies, strict=True
    ):
        lane, created, flags, priority, length = _HEAD.unpack_from(body)
        at = _AFTER_ID + length
        job_id = unpack_id(body[_AFTER_ID:at])
        options = NO_OPTIONS
        if flags & (OPTIONS | KEY):
            options, at = options_of(body, at, flags)
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
                seconds_of(due),
                seconds_of(created),
                options,
            )
        )
    return deliveries


def options_of(body: bytes, at: int, flags: int) -> tuple[Options, int]:
    """The options of a body, and where what follows them begins."""
    options = NO_OPTIONS
    if flags & OPTIONS:
        end = at + 4 + int.from_bytes(body[at : at + 4], "big")
        options, at = decode_options(body[at + 4 : end]), end
    if flags & KEY:
        at += 9 + body[at]
    return options, at


def names_of(lanes: list[bytes]) -> dict[int, tuple[str, str]]:
    """Queue and name by the number of the lane."""
    names = {}
    for number, full in zip(lanes[::2], lanes[1::2], strict=True):
        queue, _, name = full.decode().partition("\0")
        names[int.from_bytes(number, "big")] = (queue, name)
    return names
