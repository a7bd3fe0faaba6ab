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
    """`completed`, `retried`, `failed`, `released`, `cancelled`, `suspended` (a durable run waits),
    or `lost` (the lease was lost).
    """
    duration: float
    """Seconds."""
    error: str | None = None
    """The type name of the exception."""


class StaleSettlement(Event, frozen=True):
    """A settlement came too late: the worker had lost the job. Nothing was written."""

    job_id: str


class ArgumentsDiffer(Event, frozen=True):
    """A durable run came to a step or to child jobs with other arguments than those with which an
    earlier attempt stored them. What is stored is used.
    """

    job_id: str
    name: str
    key: str
    """The key of the operation."""
    place: str
    """The file and the line of the call."""


class JobsRescued(Event, frozen=True):
    """Jobs of a dead worker were rescued."""

    returned: int
    failed: int
    cancelled: int


class SessionOpened(Event, frozen=True):
    """This worker opened a session."""

    session_id: str


class SessionEnded(Event, frozen=True):
    """The session of this worker ended: `closed`, or `lost`, because it expired before."""

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


class _Subscription:
    __slots__ = ("kinds", "subscriber")

    def __init__(self, subscriber: Subscriber, kinds: tuple[type[Event], ...]) -> None:
        self.subscriber: Subscriber = subscriber
        self.kinds: tuple[type[Event], ...] = kinds


class Events:
    """A list of subscribers. An exception in one is logged and does not affect the others."""

    __slots__ = ("_subscriptions", "wanted")

    def __init__(self) -> None:
        self._subscriptions: tuple[_Subscription, ...] = ()
        self.wanted: frozenset[type[Event]] = frozenset()
        """The kinds of events that have a subscriber. Hot paths build no other events."""

    def subscribe(
        self, subscriber: Subscriber, *, kinds: tuple[type[Event], ...] = (Event,)
    ) -> Callable[[], None]:
        """Call `subscriber` with every event of these kinds, on the thread that emits it.

        Call the returned function to unsubscribe.
        """
        subscription = _Subscription(subscriber, kinds)
        self._set((*self._subscriptions, subscription))

        def unsubscribe() -> None:
            self._set(tuple(s for s in self._subscriptions if s is not subscription))

        return unsubscribe

    def _set(self, subscriptions: tuple[_Subscription, ...]) -> None:
        self._subscriptions = subscriptions
        self.wanted = frozenset(
            kind
            for kind in Event.__subclasses__()
            if any(issubclass(kind, subscription.kinds) for subscription in subscriptions)
        )

    def emit(self, event: Event) -> None:
        """Call the subscribers that want the event, in the order of their subscription."""
        for subscription in self._subscriptions:
            if not isinstance(event, subscription.kinds):
                continue
            try:
                subscription.subscriber(event)
            except BaseException:  # noqa: BLE001 - a listener must not stop what it listens to
                _log.exception("a subscriber failed on %s", type(event).__name__)
