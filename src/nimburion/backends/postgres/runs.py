"""Durable runs: encode signals, and decode the pages of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    steps, signals = [], []
    for number, at, name, body in rows:
        if name is not None:
            signals.append(StoredSignal(number, name, body, to_seconds(at)))
        elif number is not None:
            steps.append(RecordedStep(number, body, to_seconds(at)))
    return cut_run_page(cursor, steps, signals, limit)
