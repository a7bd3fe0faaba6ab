"""Hints: which queues ring, told to other processes by NOTIFY and heard by LISTEN.

A NOTIFY takes a lock that all notifying commits of a server share, and holds it until its commit is
flushed. So a process tells of a queue at most once each 5 ms: with the transaction that makes the
work when it was quiet before, else in one of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from nimburion.backends.postgres.connection.pool import Link, Links
from nimburion.backends.postgres.errors import FAULTS, meaning_of
from nimburion.backends.postgres.schema import named
from nimburion.backends.postgres.url import Address
from nimburion.backends.waiters import EVERY_QUEUE, Waiters, wait_until
from nimburion.core.errors import BackendError, BackendUnavailable, ConfigurationError

_log = logging.getLogger("nimburion.backends.postgres")

_SPACING = 0.005
_PATIENCE = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_CHECK = 15.0
"""Seconds after which the listening connection is asked whether it is there."""
_MOST = 7_000
"""Bytes of names that one NOTIFY carries."""
_TELL = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


def channel_of(address: Address) -> str:
    """What the processes of one store tell each other on.

    >>> channel_of(Address(schema="jobs", prefix="a_"))
    'jobs.a_ring'
    """
    return named("nb.ring", address).replace('"', "")


class Bell:
    """The rings that one handle makes and hears. Belongs to one event loop; listens from the first
    `wait`."""

    def __init__(self, listener: Link, tellers: Links) -> None:
        self._listener = listener
        self._tellers = tellers
        self.channel: str = channel_of(listener.address)
        self._me = secrets.token_hex(4)
        self._waiters = Waiters()
        self._untold: set[str] = set()
        self._offered = -_SPACING
        """When a call was let ring in its own transaction last."""
        self._telling: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._heard_of = asyncio.Event()
        self._given_up = False
        self._said = False

    # --- ringing ---

    def offered(self, queues: Collection[str]) -> str | None:
        """What a call may notify in the transaction that makes the work, which saves a trip; None
        while others are told so often anyway."""
        now = asyncio.get_running_loop().time()
        if self._telling is not None or now < self._offered + _SPACING:
            return None
        self._offered = now
        return self._text(queues)

    def ring(self, queues: Collection[str], *, told: bool = False) -> None:
        """Wake who waits for one of these here, and tell the others soon, unless they were told."""
        if not queues:
            return
        self._waiters.notify(queues)
        if told:
            return
        self._untold.update(queues)
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell(), name="nimburion-postgres-ring")

    def _text(self, queues: Collection[str]) -> str:
        text = "\n".join((self._me, *sorted(queues)))
        return text if len(text) <= _MOST else f"{self._me}\n{EVERY_QUEUE}"

    async def _tell(self) -> None:
        try:
            while self._untold:
                queues, self._untold = self._untold, set()
                with suppress(BackendError):
                    await self._tellers.rows(_TELL, self.channel, self._text(queues))
                await asyncio.sleep(_SPACING)
        finally:
            self._telling = None

    # --- hearing ---

    async def wait(
        self, queues: Collection[str], timeout: float, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """Return when one of the queues rings, has rung since the last wait, or after `timeout`
        seconds as `sleep` has them."""
        await self._listen(min(timeout, _PATIENCE))
        if self._waiters.take_missed(queues):
            return
        with self._waiters.expect(queues) as notified:
            await wait_until(notified, sleep(timeout))

    async def _listen(self, patience: float) -> None:
        """Be listening, or give up after so many seconds: the poll behind the hints goes on."""
        if self._listening is None and not self._given_up:
            self._listening = asyncio.create_task(self._run(), name="nimburion-postgres-bell")
        if not self._heard_of.is_set() and not self._given_up:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._heard_of.wait(), patience)

    async def _run(self) -> None:
        """Listen, again after each failure. What rang meanwhile was missed: everybody looks."""
        pause = _FIRST_PAUSE
        while not self._given_up:
            try:
                await self._follow()
            except (BackendUnavailable, OSError, EOFError) as error:
                _log.debug("no rings for now: %s", error)
            except (BackendError, ConfigurationError) as error:
                self._say(error)
            if self._heard_of.is_set() and not self._given_up:
                pause = _FIRST_PAUSE
                self._heard_of.clear()
                self._waiters.notify([EVERY_QUEUE])
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _say(self, error: Exception) -> None:
        """Once, until they are heard again: it may last."""
        if not self._said:
            self._said = True
            _log.warning("queues are not heard to ring (%s); workers look by themselves", error)

    async def _follow(self) -> None:
        link = self._listener
        await link.connect()
        if link.seen.pooled:
            self._given_up = True
            self._heard_of.set()
            await link.close()
            return
        gone = asyncio.Event()
        link.driver.add_termination_listener(lambda _: gone.set())
        try:
            await self._subscribe(link)
            while not gone.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(gone.wait(), _CHECK)
                if not gone.is_set():
                    await link.rows("SELECT 1")
        finally:
            link.drop()

    async def _subscribe(self, link: Link) -> None:
        try:
            async with asyncio.timeout(link.address.timeout):
                await link.driver.add_listener(self.channel, self._hear)
        except FAULTS as error:
            raise meaning_of(error, link.address.describe(), sent=False) from error
        self._heard_of.set()
        self._said = False

    def _hear(self, _connection: object, _pid: int, _channel: str, text: str) -> None:
        teller, *queues = text.split("\n")
        if teller != self._me:
            self._waiters.notify(queues)

    async def close(self) -> None:
        """Tell what is untold, and stop listening."""
        if self._telling is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._telling), 1.0)
        for task in (self._telling, self._listening):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._telling = self._listening = None
