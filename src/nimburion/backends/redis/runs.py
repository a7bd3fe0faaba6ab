"""Durable runs: encode the arguments and decode the replies of `send_signals.lua` and
`read_run.lua`, and decode the runs that come with their leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.planning.runs import RunCursor, cut_run_page
from nimburion.backends.redis.encoding import decode_time, reject_unstorable_text
from nimburion.backends.redis.record_format import (
    SIGNAL_EXISTS,
    SIGNAL_FINISHED,
    SIGNAL_FULL,
    SIGNAL_STORED,
    SIGNAL_UNKNOWN,
    STEP_ENTRY,
)
from nimburion.backends.server.encoding import encode_id_or_empty
from nimburion.core.errors import JobNotFound
from nimburion.core.runs import (
    RUN_PAGE_BYTES,
    NewSignal,
    RecordedStep,
    RunPage,
    SignalOutcome,
    StoredSignal,
)

_OUTCOMES = {
    SIGNAL_STORED[0]: SignalOutcome.STORED,
    SIGNAL_EXISTS[0]: SignalOutcome.EXISTS,
    SIGNAL_FINISHED[0]: SignalOutcome.FINISHED,
    SIGNAL_UNKNOWN[0]: SignalOutcome.UNKNOWN,
    SIGNAL_FULL[0]: SignalOutcome.FULL,
}
_MAX_ENTRY = (1 << 32) - 1
_MAX_ENTRIES = (1 << 31) - 1
_TIME_SIZE = 8


@reject_unstorable_text
def encode_signals(signals: Sequence[NewSignal]) -> list[bytes]:
    """Return the arguments of `send_signals.lua`: four for each signal."""
    arguments: list[bytes] = []
    for signal in signals:
        job_id = encode_id_or_empty(signal.job_id)
        arguments += (job_id, signal.name.encode(), signal.id.encode(), signal.payload)
    return arguments


def decode_outcomes(reply: bytes) -> list[SignalOutcome]:
    """Decode the reply of `send_signals.lua`."""
    return [_OUTCOMES[code] for code in reply]


def encode_read(job_id: str, cursor: RunCursor, limit: int) -> list[bytes]:
    """Return the arguments of `read_run.lua`. It returns one entry beyond the page."""
    return [
        encode_id_or_empty(job_id),
        _encode_number(cursor.step + 1),
        _encode_number(cursor.signal + 1),
        b"%d" % (min(max(0, limit), _MAX_ENTRIES) + 1),
        b"%d" % RUN_PAGE_BYTES,
    ]


def _encode_number(number: int) -> bytes:
    return min(max(0, number), _MAX_ENTRY).to_bytes(4, "big")


def decode_page(reply: list[bytes] | None, job_id: str, cursor: RunCursor, limit: int) -> RunPage:
    """Decode the reply of `read_run.lua`.

    Raises:
        JobNotFound: there is no such job.
    """
    if reply is None:
        raise JobNotFound(job_id)
    steps, signals = decode_entries(reply)
    return cut_run_page(cursor, steps, signals, limit)


def decode_small_runs(reply: list[Any]) -> dict[int, RunPage]:
    """Decode the runs that come with their leases, by the place of the job in the reply, from 1."""
    runs = zip(reply[::2], reply[1::2], strict=True)
    return {place: RunPage(*decode_entries(entries)) for place, entries in runs}


def decode_entries(entries: list[bytes]) -> tuple[list[RecordedStep], list[StoredSignal]]:
    """Decode steps and unread signals as `read_run.lua` returns them."""
    steps: list[RecordedStep] = []
    signals: list[StoredSignal] = []
    for name, entry in zip(entries[::2], entries[1::2], strict=True):
        number = int.from_bytes(name[1:5], "big")
        at = decode_time(int.from_bytes(entry[:_TIME_SIZE], "big"))
        body = entry[_TIME_SIZE:]
        if name.startswith(STEP_ENTRY):
            steps.append(RecordedStep(number, body, at))
        else:
            signals.append(StoredSignal(number, name[5:].decode(), body, at))
    return steps, signals
