"""Durable runs: encode signals, and decode the pages of a run, and runs that come with a lease."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from nimburion.backends.planning.runs import RunCursor, cut_run_page
from nimburion.backends.postgres.encoding import (
    MAX_INT8,
    encode_text,
    reject_unstorable_text,
    to_seconds,
)
from nimburion.backends.server.encoding import encode_id_or_empty
from nimburion.core.errors import JobNotFound
from nimburion.core.runs import (
    MAX_UNREAD_SIGNALS,
    RUN_PAGE_BYTES,
    NewSignal,
    RecordedStep,
    RunPage,
    SignalOutcome,
    StoredSignal,
)

OUTCOMES_BY_CODE: dict[str, SignalOutcome] = {
    "s": SignalOutcome.STORED,
    "e": SignalOutcome.EXISTS,
    "f": SignalOutcome.FINISHED,
    "u": SignalOutcome.UNKNOWN,
    "l": SignalOutcome.FULL,
}
"""The outcomes of signals by the letters of `send_signals_1`."""
_decode_small_run = msgspec.json.Decoder(list[tuple[int, int, str | None, str]]).decode


@reject_unstorable_text
def encode_signals(signals: Sequence[NewSignal]) -> list[Any]:
    """Return the arguments of `send_signals_1` after the time.

    Raises:
        Unstorable: a text cannot be stored.
    """
    return [
        [encode_id_or_empty(signal.job_id) for signal in signals],
        [encode_text(signal.name) for signal in signals],
        [encode_text(signal.id) for signal in signals],
        [signal.payload for signal in signals],
        MAX_UNREAD_SIGNALS,
    ]


def encode_cursor(job_id: str, cursor: RunCursor, limit: int) -> list[Any]:
    """Return the arguments of `read_run_1`."""
    place = [min(number, MAX_INT8) for number in cursor]
    return [encode_id_or_empty(job_id), *place, limit, RUN_PAGE_BYTES]


def decode_page(rows: Sequence[Any], job_id: str, cursor: RunCursor, limit: int) -> RunPage:
    """Decode the rows of `read_run_1`.

    Raises:
        JobNotFound: there is no job with this id.
    """
    if not rows:
        raise JobNotFound(job_id)
    return cut_run_page(cursor, *decode_entries(rows), limit)


def decode_small_run(encoded: str) -> RunPage:
    """Decode what `read_small_run_1` returns."""
    rows = _decode_small_run(encoded)
    return RunPage(
        *decode_entries(
            [(number, at, name, bytes.fromhex(body)) for number, at, name, body in rows]
        )
    )


def decode_entries(rows: Iterable[Any]) -> tuple[list[RecordedStep], list[StoredSignal]]:
    """Return the steps and the signals of rows of `read_run_1`."""
    steps, signals = [], []
    for number, at, name, body in rows:
        if name is not None:
            signals.append(StoredSignal(number, name, body, to_seconds(at)))
        elif number is not None:
            steps.append(RecordedStep(number, body, to_seconds(at)))
    return steps, signals
