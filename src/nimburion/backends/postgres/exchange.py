"""The exchange: what `exchange_1` is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from nimburion.backends.postgres.encoding import (
    int4,
    options_of,
    refusing,
    seconds_of,
    seq_of,
    text_of,
    time_of,
)
from nimburion.backends.server.encoding import MICRO, encode_json, micros, pack_id, unpack_id
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.exchange import DEFAULT_TERMS, Reply, Want
from nimburion.core.job import NO_OPTIONS
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

NOT_ALL_HELD = "NB001"
"""The code of the server's answer when completions were asked for at once and not all are held."""
_RESULTS = {"d": Settled.DONE, "a": Settled.ALREADY, "s": Settled.STALE}
_DONE = Settled.DONE
_WAITING = 64
"""Lanes a reply names at most."""
_NOTHING: tuple[None, ...] = (None,) * 9

_place = itemgetter(0, 2, 1)
"""In the reply; what came out of one lane has one place, and stands there by due time and seq."""


def _ref(one: Settlement) -> int:
    return seq_of(one.lease.ref)


Rest = tuple[bytes | None, int | None, str | None, float | None]
"""Result or error, delay, reason or message, fraction."""


@refusing
def arguments_of(
    session_id: str,
    number: int,
    settlements: Sequence[Settlement],
    want: Want,
    *,
    one_by_one: bool = False,
) -> list[Any]:
    """What the function takes behind the time, in its order, but for the floors. `one_by_one`: not
    all of what is completed is held, says the server.

    Raises:
        Unstorable: a delay or a text of a settlement cannot be stored; nothing was sent.
    """
    number = number if 0 <= number < 1 << 62 else -1
    return [session_id, number, *settlements_of(settlements, one_by_one=one_by_one), *want_of(want)]


def settlements_of(settlements: Sequence[Settlement], *, one_by_one: bool) -> Sequence[Any]:
    """Settlements as arrays; without letters, and by seq, where each completes another job."""
    if not settlements:
        return _NOTHING
    plain = not one_by_one and all(type(one) is Completed for one in settlements)
    plain = plain and len({*map(_ref, settlements)}) == len(settlements)
    if plain:
        settlements = sorted(settlements, key=_ref)
    leases = [one.lease for one in settlements]
    seqs = [seq_of(lease.ref) for lease in leases]
    named = [
        seqs,
        [pack_id(lease.job_id) for lease in leases],
        [int4(lease.token.fence) for lease in leases],
        [lease.token.nonce for lease in leases],
    ]
    if plain:
        results = [one.result for one in settlements]  # type: ignore[union-attr]
        return [None, *named, results if any(results) else None, None, None, None]
    told = [_settlement(one) for one in settlements]
    bodies, delays, texts, fractions = (
        list(part) for part in zip(*(r for _, r in told), strict=True)
    )
    return ["".join(kind for kind, _ in told), *named, bodies, delays, texts, fractions]


def _settlement(one: Settlement) -> tuple[str, Rest]:
    """The letter of a settlement, and what it brings besides its lease."""
    match one:
        case Completed():
            return "c", (one.result, None, None, None)
        case Retried():
            return "r", (encode_json(one.error), max(0, micros(one.delay)), None, None)
        case Failed():
            return "f", (encode_json(one.error), None, text_of(one.reason), None)
        case Released():
            delay = None if one.delay is None else max(0, micros(one.delay))
            return "l", (None, delay, None, None)
        case Cancelled():
            return "x", (None, None, text_of(one.reason), None)
        case Progressed():
            return "p", (None, None, text_of(one.message), one.fraction)


def want_of(want: Want) -> list[Any]:
    """A request as arrays."""
    lanes = list(dict.fromkeys(want.lanes))
    terms = [want.queues.get(lane.queue, DEFAULT_TERMS) for lane in lanes]
    return [
        max(0, want.total),
        want.nonce,
        micros(want.ageing),
        [lane.queue for lane in lanes],
        [lane.name for lane in lanes],
        [one.priority for one in terms],
        [one.cap for one in terms],
        want.max_bytes,
    ]


def reply_of(rows: list[Any], session_id: str, number: int, want: Want) -> Reply:
    """The answer in the words of the contract.

    Raises:
        SessionLost: the session is not alive.
        OutOfOrder: another number is due.
    """
    said = rows[-1]
    kind = said["kind"]
    if kind == -1:
        raise SessionLost(session_id)
    if kind < 0:
        raise OutOfOrder(f"exchange {number} after {said['seq']} of session {session_id}")
    lanes = list(dict.fromkeys(want.lanes))
    return Reply(
        [_RESULTS[letter] for letter in said["options"]],
        deliveries_of(rows, said),
        [lanes[place - 1] for place in (said["waiting"] or ())[:_WAITING]],
        time_of(said["due"]),
        seconds_of(said["seq"]),
    )


def deliveries_of(rows: list[Any], said: Any) -> list[Delivery]:  # noqa: ANN401 - a row
    """What was handed out, in rank order."""
    if len(rows) == 1:
        return []
    nonce = said["id"]
    names = {
        lane: (queue, name, 9 - rank)
        for lane, queue, name, rank in zip(
            said["lanes"], said["queues"], said["names"], said["ranks"], strict=True
        )
    }
    del rows[-1]
    rows.sort(key=_place)
    deliveries = []
    for _, seq, due, created, lane, fence, failures, lost, job_id, options, payload, *_ in rows:
        queue, name, priority = names[lane]
        deliveries.append(
            Delivery(
                Lease(unpack_id(job_id), Token(fence, nonce), seq),
                name,
                queue,
                payload,
                priority,
                failures,
                lost,
                due / MICRO,
                created / MICRO,
                NO_OPTIONS if options is None else options_of(options),
            )
        )
    return deliveries


def rung_of(said: Any) -> list[str]:  # noqa: ANN401 - a row
    """The queues that an exchange rings."""
    return said["rung"] or []
