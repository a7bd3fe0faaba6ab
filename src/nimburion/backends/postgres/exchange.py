"""The exchange: encode the arguments and decode the rows of `exchange_1`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any, TypeVar, cast

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
from nimburion.backends.postgres.runs import decode_small_run
from nimburion.backends.server.encoding import LaneEncoder, decode_id, encode_id, encode_json
from nimburion.core.errors import BackendError, OutOfOrder, SessionLost
from nimburion.core.exchange import (
    DEFAULT_QUEUE_OPTIONS,
    MAX_WAITING_LANES,
    Reply,
    ReserveRequest,
)
from nimburion.core.flows import WaitSource
from nimburion.core.job import NO_JOB_OPTIONS
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settlement import (
    SETTLED_BY_LETTER,
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settlement,
    Spent,
    Suspended,
)
from nimburion.core.timing.clock import MICRO, to_micros

T = TypeVar("T")

NOT_ALL_LEASED = "NB001"
"""SQLSTATE of the error for a batch of completions when the session does not hold all their leases.
"""
_KEEP = "keep"
"""The text of a completion whose payload is kept."""
SETTLEMENT_PARAMETERS = (
    "kinds",
    "seqs",
    "ids",
    "fences",
    "nonces",
    "bodies",
    "delays",
    "texts",
    "fractions",
)
_NO_SETTLEMENTS: tuple[None, ...] = (None,) * len(SETTLEMENT_PARAMETERS)

_NO_LIMIT = frozenset([None])
_get_limit = attrgetter("limit")

EncodedLanes = tuple[list[str], list[str], list[int]]
"""The queues, names and priorities of lanes."""
SettlementDetails = tuple[bytes | None, int | None, str | None, float | None]
"""Result, error or step; delay, units or number; reason, message or sources; progress fraction."""


@reject_unstorable_text
def encode_arguments(
    session_id: str,
    number: int,
    settlements: Sequence[Settlement],
    request: ReserveRequest,
    lane_encoder: LaneEncoder[EncodedLanes],
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
        *encode_request(request, lane_encoder),
    ]


def clamp_number(number: int) -> int:
    """Return the number of an exchange; -1, which is out of order, if it cannot be stored."""
    return number if 0 <= number < 1 << 62 else -1


@reject_unstorable_text
def encode_named_settlements(
    settlements: Sequence[Settlement], *, one_by_one: bool
) -> dict[str, Any]:
    """Return what `encode_settlements` returns, by the names of the parameters.

    Raises:
        Unstorable: a delay or a text of a settlement cannot be stored.
    """
    encoded = encode_settlements(settlements, one_by_one=one_by_one)
    return dict(zip(SETTLEMENT_PARAMETERS, encoded, strict=True))


def encode_settlements(settlements: Sequence[Settlement], *, one_by_one: bool) -> Sequence[Any]:
    """Encode settlements as arrays, in the order of SETTLEMENT_PARAMETERS. If each completes a
    different job, the letters are omitted and the order is by seq.
    """
    if not settlements:
        return _NO_SETTLEMENTS
    if not one_by_one and {*map(type, settlements)} == {Completed}:
        encoded = _encode_completions(cast("Sequence[Completed]", settlements))
        if encoded is not None:
            return encoded
    leases = [settlement.lease for settlement in settlements]
    details = [encode_settlement(settlement) for settlement in settlements]
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


def encode_settlement(  # noqa: C901, PLR0911 - one for each kind
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
        case Recorded():
            takes = None if settlement.takes is None else str(settlement.takes)
            kind = "g" if settlement.forgets else "t"
            return kind, (settlement.body, settlement.number, takes, None)
        case Suspended():
            delay = None if settlement.delay is None else max(0, to_micros(settlement.delay))
            return "s", (None, delay, encode_sources(settlement.sources), None)


def encode_sources(sources: Sequence[WaitSource]) -> str:
    """Return the sources of a suspended run as `suspend_runs_1` takes them."""
    return encode_json([(source.kind, encode_id(source.id).hex()) for source in sources]).decode()


def encode_request(request: ReserveRequest, lane_encoder: LaneEncoder[EncodedLanes]) -> list[Any]:
    """Encode a reserve request as arrays."""
    return [
        max(0, request.total),
        request.nonce,
        to_micros(request.ageing),
        *lane_encoder.encode(request),
        request.max_bytes,
    ]


def encode_lanes(request: ReserveRequest) -> EncodedLanes:
    """Return the queues, the names and the priorities of the different lanes of a request."""
    lanes = list(dict.fromkeys(request.lanes))
    options = [request.queues.get(lane.queue, DEFAULT_QUEUE_OPTIONS) for lane in lanes]
    return (
        [lane.queue for lane in lanes],
        [lane.name for lane in lanes],
        [queue.priority for queue in options],
    )


def is_capped(request: ReserveRequest) -> bool:
    """Return whether the number of jobs of a queue is limited, so that the exchange is planned."""
    return not _NO_LIMIT.issuperset(map(_get_limit, request.queues.values()))


def apply_cap(request: ReserveRequest) -> ReserveRequest:
    """Return a request with the limits of requested queues only; if that is a single queue, with a
    smaller total in place of its limit.
    """
    names = {lane.queue for lane in request.lanes}
    queues = {name: options for name, options in request.queues.items() if name in names}
    total = request.total
    if len(names) == 1:
        for name, options in queues.items():
            if options.limit:  # a total of 0 would request no jobs
                total = min(total, options.limit)
                queues[name] = msgspec.structs.replace(options, limit=None)
    return msgspec.structs.replace(request, total=total, queues=queues)


def make_refusal(status: Any, session_id: str, number: int) -> BackendError:  # noqa: ANN401 - a row
    """Return the error of an exchange that was refused."""
    if status["outcome"] == "session_lost":
        return SessionLost(session_id)
    return OutOfOrder(f"exchange {number} after {status['last_number']} of session {session_id}")


def decode_reply(rows: list[Any], request: ReserveRequest) -> Reply:
    """Decode the rows of the function."""
    status = rows[-1]
    lanes = list(dict.fromkeys(request.lanes))
    return Reply(
        [SETTLED_BY_LETTER[letter] for letter in status["results"]],
        decode_deliveries(rows, status),
        [lanes[place - 1] for place in (status["waiting"] or ())[:MAX_WAITING_LANES]],
        to_optional_seconds(status["next_due"]),
        to_seconds(status["now"]),
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
    jobs = rows[0]
    ordered = sorted(
        zip(
            jobs["reply_positions"] or repeat(1),
            jobs["dues"],
            jobs["seqs"],  # no two jobs have the same: nothing behind it is compared
            jobs["created_at"],
            jobs["job_lanes"],
            jobs["fences"] or repeat(1),
            jobs["failures"] or repeat(0),
            jobs["lost"] or repeat(0),
            jobs["ids"],
            jobs["options"],
            jobs["payloads"],
            jobs["runs"] or repeat(None),
            strict=False,
        )
    )
    deliveries = []
    for (
        _,
        due,
        seq,
        created_at,
        lane,
        fence,
        failures,
        lost,
        job_id,
        options,
        payload,
        run,
    ) in ordered:
        queue, name, priority = names[lane]
        delivery = Delivery(
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
        if run is not None:
            delivery = msgspec.structs.replace(delivery, run=decode_small_run(run))
        deliveries.append(delivery)
    return deliveries


def get_queues_to_notify(status: Any) -> list[str]:  # noqa: ANN401 - a row
    """Return the queues to notify after an exchange."""
    return status["to_notify"] or []
