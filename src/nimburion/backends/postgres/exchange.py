"""The exchange: encode the arguments and decode the rows of `exchange_1`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from nimburion.backends.postgres.encoding import (
    MAX_INT4,
    MAX_INT8,
    clamp_int4,
    clamp_seq,
    decode_job_options,
    encode_text,
    reject_unstorable_text,
    to_optional_seconds,
    to_seconds,
)
from nimburion.backends.server.encoding import decode_id, encode_id, encode_json
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.exchange import (
    DEFAULT_QUEUE_OPTIONS,
    MAX_WAITING_LANES,
    Reply,
    ReserveRequest,
)
from nimburion.core.job import NO_JOB_OPTIONS
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
)
from nimburion.core.timing.clock import MICRO, to_micros

if TYPE_CHECKING:
    from nimburion.backends.postgres.planned_exchange import PlannedReply

T = TypeVar("T")

NOT_ALL_LEASED = "NB001"
"""SQLSTATE of the error for a batch of completions when the session does not hold all their leases.
"""
_RESULTS_BY_CODE = {"d": Settled.DONE, "a": Settled.ALREADY, "s": Settled.STALE}
_KEEP = "keep"
"""The text of a completion whose payload is kept."""
_NO_SETTLEMENTS: tuple[None, ...] = (None,) * 9

_delivery_order = itemgetter(0, 2, 1)
"""The order of jobs in a reply: position, due time and seq. Jobs of the same lane may share a
position.
"""
_get_delivery_columns = itemgetter(slice(11))
"""The columns of a leased job; the columns after them belong to the status row."""


SettlementDetails = tuple[bytes | None, int | None, str | None, float | None]
"""Result or error, delay, reason or message, progress fraction."""


@reject_unstorable_text
def encode_arguments(
    session_id: str,
    number: int,
    settlements: Sequence[Settlement],
    request: ReserveRequest,
    *,
    one_by_one: bool = False,
) -> list[Any]:
    """Return the arguments of the function after the time, in order, without the low-water marks.
    Set `one_by_one` after the server replied that the session does not hold all completed jobs.

    Raises:
        Unstorable: a delay or a text of a settlement cannot be stored; nothing was sent.
    """
    return [
        session_id,
        clamp_number(number),
        *encode_settlements(settlements, one_by_one=one_by_one),
        *encode_request(request),
    ]


def clamp_number(number: int) -> int:
    """Limit the number of an exchange. An out-of-range value becomes -1, which is out of order."""
    return number if 0 <= number < 1 << 62 else -1


@reject_unstorable_text
def encode_settlements(settlements: Sequence[Settlement], *, one_by_one: bool) -> Sequence[Any]:
    """Encode settlements as arrays. If each completes a different job, the letters are omitted and
    the order is by seq.
    """
    if not settlements:
        return _NO_SETTLEMENTS
    if not one_by_one and {*map(type, settlements)} == {Completed}:
        encoded = _encode_completions(cast("Sequence[Completed]", settlements))
        if encoded is not None:
            return encoded
    leases = [settlement.lease for settlement in settlements]
    details = [_encode_settlement(settlement) for settlement in settlements]
    bodies, delays, texts, fractions = (
        list(part) for part in zip(*(r for _, r in details), strict=True)
    )
    return [
        "".join(kind for kind, _ in details),
        [clamp_seq(lease.ref) for lease in leases],
        [encode_id(lease.job_id) for lease in leases],
        [clamp_int4(lease.token.fence) for lease in leases],
        [lease.token.nonce for lease in leases],
        bodies,
        delays,
        texts,
        fractions,
    ]


def _encode_completions(settlements: Sequence[Completed]) -> Sequence[Any] | None:
    """Encode completions of different jobs for `complete_all_1`, without a call for each. Return
    None if a job occurs twice, or if a lease cannot be one of this backend.
    """
    by_seq = {settlement.lease.ref: settlement for settlement in settlements}
    if len(by_seq) < len(settlements) or {*map(type, by_seq)} != {int}:
        return None
    seqs = sorted(cast("dict[int, Completed]", by_seq))
    completions = [by_seq[seq] for seq in seqs]
    tokens = [completion.lease.token for completion in completions]
    fences = [token.fence for token in tokens]
    if seqs[0] <= 0 or seqs[-1] > MAX_INT8 or min(fences) < 0 or max(fences) > MAX_INT4:
        return None
    results = [completion.result for completion in completions]
    texts = [_KEEP if completion.keep_payload else None for completion in completions]
    return [
        None,
        seqs,
        None,
        _shorten(fences),
        [token.nonce for token in tokens],
        results if any(results) else None,
        None,
        _shorten(texts) if any(texts) else None,
        None,
    ]


def _shorten(values: list[T]) -> list[T]:
    """Return a single value if all are equal; the SQL function then uses it for all jobs."""
    return values[:1] if len({*values}) == 1 else values


def _encode_settlement(  # noqa: PLR0911 - one for each kind
    settlement: Settlement,
) -> tuple[str, SettlementDetails]:
    """Return the letter of a settlement and its data other than the lease."""
    match settlement:
        case Completed():
            return "c", (settlement.result, None, _KEEP if settlement.keep_payload else None, None)
        case Retried():
            return "r", (
                encode_json(settlement.error),
                max(0, to_micros(settlement.delay)),
                None,
                None,
            )
        case Failed():
            return "f", (encode_json(settlement.error), None, encode_text(settlement.reason), None)
        case Released():
            delay = None if settlement.delay is None else max(0, to_micros(settlement.delay))
            return "u" if settlement.unstarted else "l", (None, delay, None, None)
        case RateLimited():
            return "q", (None, max(0, to_micros(settlement.retry_after)), None, None)
        case Cancelled():
            return "x", (None, None, encode_text(settlement.reason), None)
        case Progressed():
            return "p", (None, None, encode_text(settlement.message), settlement.fraction)
        case Spent():
            return "e", (None, settlement.units, None, None)


def encode_request(request: ReserveRequest) -> list[Any]:
    """Encode a reserve request as arrays."""
    lanes = list(dict.fromkeys(request.lanes))
    options = [request.queues.get(lane.queue, DEFAULT_QUEUE_OPTIONS) for lane in lanes]
    return [
        max(0, request.total),
        request.nonce,
        to_micros(request.ageing),
        [lane.queue for lane in lanes],
        [lane.name for lane in lanes],
        [queue.priority for queue in options],
        request.max_bytes,
    ]


def is_capped(request: ReserveRequest) -> bool:
    """Return whether the number of jobs of a queue is limited, so that the exchange is planned."""
    return any(options.limit is not None for options in request.queues.values())


def apply_cap(request: ReserveRequest) -> ReserveRequest:
    """Return a request without the limit of a queue, if no other queue is requested."""
    queues = list({lane.queue for lane in request.lanes})
    options = request.queues.get(queues[0]) if len(queues) == 1 else None
    if options is None or not options.limit:  # a total of 0 would request no jobs
        return request
    return msgspec.structs.replace(
        request,
        total=min(request.total, options.limit),
        queues={queues[0]: msgspec.structs.replace(options, limit=None)},
    )


def check_outcome(status: Any, session_id: str, number: int) -> None:  # noqa: ANN401 - a row
    """Raise the error of an exchange that was refused.

    Raises:
        SessionLost: the session is not alive.
        OutOfOrder: the backend expects another number.
    """
    outcome = status["outcome"]
    if outcome == "session_lost":
        raise SessionLost(session_id)
    if outcome == "out_of_order":
        raise OutOfOrder(f"exchange {number} after {status['last_number']} of session {session_id}")


def decode_reply(rows: list[Any], request: ReserveRequest) -> Reply:
    """Decode the rows of the function."""
    status = rows[-1]
    lanes = list(dict.fromkeys(request.lanes))
    return Reply(
        [_RESULTS_BY_CODE[letter] for letter in status["results"]],
        decode_deliveries(rows, status),
        [lanes[place - 1] for place in (status["waiting"] or ())[:MAX_WAITING_LANES]],
        to_optional_seconds(status["next_due"]),
        to_seconds(status["now"]),
    )


def decode_planned_reply(planned: PlannedReply, request: ReserveRequest) -> Reply:
    """Decode what a planned exchange has returned."""
    begun, rows = planned.begun, planned.rows
    lanes = list(dict.fromkeys(request.lanes))
    waiting, next_due = {*planned.changing, *(begun["waiting"] or ())}, begun["next_due"]
    deliveries: list[Delivery] = []
    if planned.gave_up:
        waiting.update(range(1, len(lanes) + 1))
    if rows is not None:
        status = rows[-1]
        waiting.update(status["waiting"] or ())
        next_due = min((x for x in (next_due, status["next_due"]) if x is not None), default=None)
        deliveries = decode_deliveries(rows, status)
    if planned.seqs is not None:
        places = {seq: n for n, seq in enumerate(planned.seqs)}
        deliveries.sort(key=lambda delivery: places[cast("int", delivery.lease.ref)])
    return Reply(
        [_RESULTS_BY_CODE[letter] for letter in begun["results"]],
        deliveries,
        [lanes[place - 1] for place in sorted(waiting)[:MAX_WAITING_LANES]],
        to_optional_seconds(next_due),
        to_seconds(begun["now"]),
    )


def decode_deliveries(rows: list[Any], status: Any) -> list[Delivery]:  # noqa: ANN401 - a row
    """Return the reserved jobs in rank order."""
    if len(rows) == 1:
        return []
    nonce = status["nonce"]
    names = {
        lane: (queue, name, 9 - rank)
        for lane, queue, name, rank in zip(
            status["lanes"], status["queues"], status["names"], status["ranks"], strict=True
        )
    }
    del rows[-1]
    rows.sort(key=_delivery_order)
    deliveries = []
    for row in map(_get_delivery_columns, rows):
        _, seq, due, created_at, lane, fence, failures, lost, job_id, options, payload = row
        queue, name, priority = names[lane]
        deliveries.append(
            Delivery(
                Lease(decode_id(job_id), Token(fence, nonce), seq),
                name,
                queue,
                payload,
                priority,
                failures,
                lost,
                due / MICRO,
                created_at / MICRO,
                NO_JOB_OPTIONS if options is None else decode_job_options(options),
            )
        )
    return deliveries


def get_queues_to_notify(status: Any) -> list[str]:  # noqa: ANN401 - a row
    """Return the queues to notify after an exchange."""
    return status["to_notify"] or []


def list_planned_queues_to_notify(begun: Any, reply: Reply) -> list[str]:  # noqa: ANN401 - a row
    """Return the queues to notify after a planned exchange."""
    queues = get_queues_to_notify(begun)
    if begun["outcome"] == "open" and begun["queues"]:
        left = Counter(begun["queues"])
        left -= Counter(delivery.queue for delivery in reply.deliveries)
        return queues + list(left.elements())
    return queues
