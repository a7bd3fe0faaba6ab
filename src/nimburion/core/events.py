"""Events that a processor emits to its subscribers: logs, metrics and tests."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

_log = logging.getLogger("nimburion.events")


class Event(msgspec.Struct, frozen=True):
    """The base class of all events."""


class JobEnqueued(Event, frozen=True):
    """A job was stored. `created` is False if the backend had the job already."""

    job_id: str
    name: str
    queue: str
    created: bool


class AttemptStarted(Event, frozen=True):
    """A handler is about to be called."""

    job_id: str
    name: str
    queue: str
    attempt: int
    waited: float
    """Seconds since the job became due."""


class AttemptEnded(Event, frozen=True):
    """An attempt has an outcome, which the next exchange reports to the backend."""

    job_id: str
    name: str
    queue: str
    attempt: int
    outcome: str
    """`completed`, `retried`, `failed`, `released`, `cancelled`, or `lost` (the lease was lost)."""
    duration: float
    """Seconds."""
    error: str | None = None
    """The type name of the exception."""


class StaleSettlement(Event, frozen=True):
    """A settlement came too late: the worker had lost the job. Nothing was written."""

    job_id: str


class JobsRescued(Event, frozen=True):
    """Jobs of a dead worker were rescued."""

    returned: int
    failed: int
    cancelled: int


class SessionOpened(Event, frozen=True):
    """This worker opened a session."""

    session_id: str


class SessionEnded(Event, frozen=True):
    """The session of this worker ended: `closed`, or `lost` to a rescue."""

    session_id: str
    how: str


class TickDecided(Event, frozen=True):
    """This process decided a tick of a schedule."""

    schedule: str
    tick: float
    """The nominal time, in epoch seconds."""
    outcome: str
    """`fired`, or `skipped` by the overlap rule or a unique key."""
    job_id: str | None
    late: float
    """Seconds after the nominal time."""


class BackendUnreachable(Event, frozen=True):
    """The backend did not answer; the worker retries with backoff."""

    error: str


Subscriber = Callable[[Event], None]


class Events:
    """A list of subscribers. An exception in one is logged and does not affect the others."""

    __slots__ = ("_subscribers",)

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def __bool__(self) -> bool:
        """Return whether there is a subscriber. Hot paths check this before they build an event."""
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every event from now on, on the thread that emits it.

        Call the returned function to unsubscribe.
        """
        self._subscribers = (*self._subscribers, subscriber)

        def unsubscribe() -> None:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Call all subscribers with the event, in the order of their subscription."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except BaseException:  # noqa: BLE001 - a listener must not stop what it listens to
                _log.exception("a subscriber failed on %s", type(event).__name__)
