"""Calls of `wait` and `wait_for_session`, and the notifications that end them.

A notification names a queue or a session. The name of a session starts with `@`, which no queue
name contains.

Each call of `wait` is an idle entry: its worker can start a job at once. If n jobs of a queue
become available, n of these calls end (a wake-up each). If fewer calls wait, the queue is notified
as a whole: each handle without a call keeps the notification for its next call. So a worker that
looked for jobs a moment too early looks again.

A call that is cancelled after it was woken passes its wake-up on at once: its worker may stop.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimburion.core.exchange import Reply, ReserveRequest

EVERY_QUEUE = "*"
"""As a notified name: ends every call of `wait`, whatever its queues. No queue has this name."""
EVERY_SESSION = "@"
"""As a notified name: ends every call of `wait_for_session`, whatever its session."""

ALL_WORKERS = 1 << 30
"""As a number of jobs: more than any fleet has workers. Every call ends that waits for the queue.
"""


MAX_WAIT_WITHOUT_NOTIFICATIONS = 2.0
"""Seconds after which a call of `wait` returns at the latest while its handle receives no
notifications: workers of a large fleet ask for longer waits.
"""

PassOn = Callable[[str, bool], object]
"""Wakes another worker for a job of a queue. The second argument says whether the wake-up was
passed on before, by a worker that found nothing.
"""

JobCounts = defaultdict[str, int]
"""The queues to notify, each with the number of its jobs that became available; `JobCounts(int)` is
empty. Sessions to notify are in it too, with any number.
"""


def make_session_name(session_id: str) -> str:
    """Return the name under which a session is notified.

    >>> make_session_name("4f1c")
    '@4f1c'
    """
    return f"{EVERY_SESSION}{session_id}"


def is_session_name(name: str) -> bool:
    """Return whether a notified name is that of a session, or of all sessions."""
    return name.startswith(EVERY_SESSION)


class LastWait:
    """How the last call of `wait` on a handle ended, until the next exchange has its reply."""

    __slots__ = ("_may_pass", "has_ended")

    def __init__(self) -> None:
        self.has_ended: bool = False
        """Whether a call has ended, and no exchange has reserved jobs since. An exchange that is
        not the first after a call wakes no other worker, so that a busy worker pays nothing.
        """
        self._may_pass: Collection[str] = ()

    def note_end(self, may_pass: Collection[str] = ()) -> None:
        """Note that a call ended. `may_pass` are the queues of a wake-up that was not passed on
        before; none after a timeout or a notification of all.
        """
        self.has_ended, self._may_pass = True, may_pass

    def find_next(self, request: ReserveRequest, reply: Reply) -> tuple[Collection[str], bool]:
        """Return the queues of which one more call should end after the first exchange, and whether
        the wake-up is passed on, because this exchange reserved nothing.
        """
        if not self.has_ended or not request.total:
            return (), False
        may_pass, self._may_pass, self.has_ended = self._may_pass, (), False
        if reply.deliveries:
            return {lane.queue for lane in reply.waiting}, False
        return may_pass, True


class Waiters:
    """The calls that wait on one handle. Belongs to one event loop.

    A notification of a queue that ends no call is kept for the next call that waits for the queue.
    """

    __slots__ = ("_missed", "_pass_on", "calls", "last_wait")

    def __init__(self, pass_on: PassOn) -> None:
        self._pass_on = pass_on
        self.calls: dict[asyncio.Future[Collection[str]], frozenset[str]] = {}
        """By the future of a call, what it waits for. The result is for `LastWait.note_end`."""
        self._missed: set[str] = set()
        self.last_wait: LastWait = LastWait()

    def take_missed(self, queues: Collection[str]) -> bool:
        """Return whether one of the queues was notified while no call waited for it.

        The notifications are then cleared.
        """
        missed = self._missed.intersection((*queues, EVERY_QUEUE))
        self._missed -= missed
        if missed:
            self.last_wait.note_end()
        return bool(missed)

    @contextmanager
    def expect(self, queues: Collection[str]) -> Iterator[asyncio.Future[Collection[str]]]:
        """Yield a future that is done when one of the queues is notified inside the block."""
        notified: asyncio.Future[Collection[str]] = asyncio.get_running_loop().create_future()
        self.calls[notified] = frozenset((*queues, EVERY_QUEUE))
        try:
            yield notified
        except asyncio.CancelledError:
            if notified.done():
                self.last_wait.note_end()
                for queue in notified.result():
                    self._pass_on(queue, False)  # noqa: FBT003 - see `PassOn`
            raise
        finally:
            self.calls.pop(notified, None)
        self.last_wait.note_end(notified.result() if notified.done() else ())

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified."""
        notified: asyncio.Future[Collection[str]] = asyncio.get_running_loop().create_future()
        self.calls[notified] = frozenset((make_session_name(session_id), EVERY_SESSION))
        try:
            await notified
        finally:
            self.calls.pop(notified, None)

    def has_call(self, queue: str) -> bool:
        """Return whether a call waits for the queue."""
        return any(queue in wanted for wanted in self.calls.values())

    def wake(self, queue: str, jobs: int, *, passed: bool = False) -> int:
        """End up to `jobs` calls that wait for the queue, and return their number.

        `passed`: another worker found no job for itself after this wake-up.
        """
        count = 0
        for notified, wanted in self.calls.items():
            if count == jobs:
                break
            if queue in wanted and not notified.done():
                notified.set_result(() if passed else (queue,))
                count += 1
        return count

    def keep(self, queues: Iterable[str]) -> None:
        """Keep notifications for the next call that waits for one of the queues."""
        self._missed.update(queues)

    def notify(self, names: Collection[str]) -> None:
        """End all calls that wait for one of the queues or sessions.

        Keep the notifications of queues that no call waits for.
        """
        missed = {name for name in names if not is_session_name(name)}
        for notified, wanted in self.calls.items():
            if not wanted.isdisjoint(names):
                missed -= wanted
                _resolve(notified)
        self._missed |= missed

    def end_all(self) -> None:
        """End all calls."""
        for notified in self.calls:
            _resolve(notified)

    def discard_all(self) -> None:
        """Discard all calls, because their event loop no longer exists."""
        self.calls.clear()


async def wait_until(notified: asyncio.Future[Collection[str]], pause: Awaitable[None]) -> None:
    """Return when the future is done or the pause is over, and cancel the pause."""
    pausing = asyncio.ensure_future(pause)
    pausing.add_done_callback(partial(_resolve, notified))
    try:
        await notified
    finally:
        pausing.cancel()


def _resolve(notified: asyncio.Future[Collection[str]], _: object = None) -> None:
    if not notified.done():
        notified.set_result(())
