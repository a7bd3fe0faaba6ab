"""What happens, told to whoever subscribed: logs, metrics and tests listen here."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

_log = logging.getLogger("nimburion.events")


class Event(msgspec.Struct, frozen=True):
    """The base of all events."""


class JobEnqueued(Event, frozen=True):
    """A job is stored. `created` is False when the backend had it already."""

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
    """Seconds since the job was due."""


class AttemptEnded(Event, frozen=True):
    """An attempt has an outcome; the backend will hear of it with the next exchange."""

    job_id: str
    name: str
    queue: str
    attempt: int
    outcome: str
    """completed, retried, failed, released, cancelled, or lost (the lease was)."""
    duration: float
    """Seconds."""
    error: str | None = None
    """The type of what was raised."""


class StaleSettlement(Event, frozen=True):
    """A settlement came too late: the job belongs to another worker. Nothing was written."""

    job_id: str


class JobsRescued(Event, frozen=True):
    """Jobs of a dead worker were taken back."""

    returned: int
    failed: int
    cancelled: int


class SessionOpened(Event, frozen=True):
    """This worker has a session."""

    session_id: str


class SessionEnded(Event, frozen=True):
    """This worker's session is over: `closed`, or `lost` to a rescue."""

    session_id: str
    how: str


class TickDecided(Event, frozen=True):
    """This process decided a tick of a schedule."""

    schedule: str
    tick: float
    """The nominal time, epoch seconds."""
    outcome: str
    """`fired`, or `skipped` by the overlap rule or a unique key."""
    job_id: str | None
    late: float
    """Seconds after the nominal time."""


class BackendUnreachable(Event, frozen=True):
    """The backend did not answer; asked again with backoff."""

    error: str


Subscriber = Callable[[Event], None]


class Events:
    """A list of subscribers. An error in one is logged and reaches nobody else."""

    __slots__ = ("_subscribers",)

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def __bool__(self) -> bool:
        """Whether anybody listens: hot paths ask before they build an event."""
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every event from now on, on the emitting thread, until the
        returned function is called."""
        self._subscribers = (*self._subscribers, subscriber)

        def unsubscribe() -> None:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Tell everybody, in the order they subscribed."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except BaseException:  # noqa: BLE001 - a listener must not stop what it listens to
                _log.exception("a subscriber failed on %s", type(event).__name__)
