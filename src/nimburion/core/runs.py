"""Durable runs: jobs whose handler remembers its steps, waits without a worker, and gets signals.

A run stores each step with the settlement `Recorded`. With `Suspended` it gives its lease back and
waits for the end of flows, for signals and until a time. The next attempt gets the steps and the
unread signals with its lease, or from `Reading.read_run`, and continues behind the last step.
What a step contains is decided by the engine of `nimburion.jobs`; backends store bytes.
"""

from __future__ import annotations

import enum

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.flows import SourceKind, WaitSource
from nimburion.core.size_limits import check_text
from nimburion.core.text.shortening import shorten
from nimburion.core.timing.clock import MICRO

CLEANUP_STEP = 0
"""The number of the step that says that the end of the run needs a worker: it has something to
undo, or has started other jobs. To cancel such a run, the backend sends it the signal
`CANCEL_SIGNAL`.
"""
CANCEL_SIGNAL = ""
"""The name of the signal that asks a run to end as cancelled. Its id is the same."""
MAX_DELIVERED_RUN = 4096
"""The most bytes of the steps and the unread signals of a run that come with its lease."""
MAX_UNREAD_SIGNALS = 1_000
"""The most unread signals of a job, without the one that asks it to end. The id of a signal that
was taken is known until this number of later signals was stored.
"""
MAX_SIGNALS = 500
"""The most signals of one call of `send_signals`."""
MAX_SIGNAL_NAME = 200
"""The most characters of the name of a signal."""
MAX_SIGNAL_BYTES = 64 * 1024
"""The maximum size of the value of a signal, as JSON."""
MAX_SOURCES = 1_000
"""The most sources for which a suspended run waits."""
RUN_PAGE_BYTES = 4 * 1024 * 1024
"""The size of the steps and signals after which a page of `read_run` ends, in bytes. It has at
least one of them.
"""


class RecordedStep(msgspec.Struct, frozen=True, gc=False):
    """A step of a durable run. A run has at most one with each number."""

    number: int
    """1 for the first step, or `CLEANUP_STEP`."""
    body: bytes
    at: float
    """When it was stored, in epoch seconds on the backend's clock."""


class NewSignal(msgspec.Struct, frozen=True):
    """A signal to send to a job."""

    job_id: str
    name: str
    """As `check_signal_name` wants it. `CANCEL_SIGNAL` is sent by `cancel` only."""
    id: str
    """The same id is one signal of the job, however often it is sent, until it was taken and
    `MAX_UNREAD_SIGNALS` later ones were stored.
    """
    payload: bytes


class StoredSignal(msgspec.Struct, frozen=True):
    """An unread signal of a job."""

    number: int
    """Signals of a job arrive in the order of these numbers."""
    name: str
    payload: bytes
    at: float
    """When it was stored, in epoch seconds on the backend's clock."""


class SignalOutcome(enum.StrEnum):
    """The result of sending one signal."""

    STORED = "stored"
    EXISTS = "exists"
    """The job has, or had, a signal with this id. Nothing was stored."""
    FINISHED = "finished"
    """The job has ended. Nothing was stored."""
    UNKNOWN = "unknown"
    """There is no job with this id."""
    FULL = "full"
    """The job has `MAX_UNREAD_SIGNALS` unread signals. Nothing was stored."""


class RunPage(msgspec.Struct, frozen=True):
    """A page of what is stored about a run: its steps by number, then its unread signals in their
    order. `next` is the cursor of the next page; None: last.
    """

    steps: list[RecordedStep]
    signals: list[StoredSignal]
    next: str | None = None


def check_signal_name(name: str) -> None:
    """Raise `InvalidJob` unless a signal can have this name: 1 to 200 characters, none of which is
    a slash or a control character.
    """
    if not 1 <= len(name) <= MAX_SIGNAL_NAME or "/" in name:
        raise InvalidJob(
            f"the name of a signal is a text of 1 to {MAX_SIGNAL_NAME} characters without a slash, "
            f"not {shorten(repr(name), 80)}"
        )
    check_text("the name of a signal", name)


def check_signal_size(name: str, payload: bytes) -> None:
    """Raise `InvalidJob` if the value of a signal is too large."""
    if len(payload) > MAX_SIGNAL_BYTES:
        raise InvalidJob(
            f"signal {name!r}: its value is {len(payload)} bytes, over the limit of "
            f"{MAX_SIGNAL_BYTES}; store it elsewhere and send its location"
        )


def make_signal_source(job_id: str, name: str) -> WaitSource:
    """Return the source that is met when a job has an unread signal of this name.

    >>> make_signal_source("order-1", "paid").id
    'order-1/paid'
    """
    return WaitSource(SourceKind.SIGNAL, f"{job_id}/{name}")


def split_signal_source(source_id: str) -> tuple[str, str]:
    """Return the id of the job and the name of the signal of a source.

    >>> split_signal_source("shop/order-1/paid")
    ('shop/order-1', 'paid')
    """
    job_id, _, name = source_id.rpartition("/")
    return job_id, name


def make_time_source(at: int) -> WaitSource:
    """Return the source that is met at a time, in microseconds since 1970.

    >>> make_time_source(1_500_000).id
    '00000000000001500000'
    """
    return WaitSource(SourceKind.TIME, f"{max(0, at):020d}")


def read_time_source(source_id: str) -> float:
    """Return the time of a source, in epoch seconds.

    >>> read_time_source("00000000000001500000")
    1.5
    """
    return int(source_id) / MICRO
