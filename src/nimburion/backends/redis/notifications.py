"""Hints: a connection that listens for rung queues, while somebody waits for them.

A queue rings only when a worker of it has nothing to do: it then stands in the hash `bell`, put
there by the exchange that found nothing, or by `wait` itself. Busy fleets publish nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress

from hiredis import pack_command
from redis import exceptions as driver

from nimburion.backends.redis.connection.protocol import Wire
from nimburion.backends.redis.connection.topology import Servers
from nimburion.backends.waiters import EVERY_QUEUE, Waiters, wait_until
from nimburion.core.errors import BackendError, BackendUnavailable

_log = logging.getLogger("nimburion.backends.redis")

_PATIENCE = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_SILENCE = 15.0
"""Seconds without a word after which the server is asked whether it is still there."""
_PING = pack_command((b"PING",))

_OUTAGES = (BackendUnavailable, OSError, EOFError, driver.ConnectionError, driver.TimeoutError)

Arm = Callable[[Collection[str]], Awaitable[None]]


class Bell:
    """The rings that one handle hears. Belongs to one event loop; listens from the first `wait`."""

    def __init__(self, servers: Servers, channel: bytes, arm: Arm) -> None:
        self._servers = servers
        self.channel: bytes = channel
        self._arm = arm
        self._armed: set[str] = set()
        """Queues that stand in the hash, as far as is known."""
        self._waiters = Waiters()
        self._subscribed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._said = ""

    async def wait(
        self, queues: Collection[str], timeout: float, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        """Return when one of the queues rings, has rung since the last wait, or after `timeout`
        seconds as `sleep` has them."""
        await self._listen(min(timeout, _PATIENCE))
        if self._waiters.take_missed(queues):
            return
        with self._waiters.expect(queues) as notified:
            await self._arm_all(queues)
            await wait_until(notified, sleep(timeout))

    def note_armed(self, queues: Iterable[str]) -> None:
        """An exchange found nothing, and put these into the hash."""
        if self._listening is not None:
            self._armed.update(queues)

    async def close(self) -> None:
        """Stop listening."""
        task, self._listening = self._listening, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _listen(self, patience: float) -> None:
        """Be subscribed, or give up after so many seconds: the poll behind the hints goes on."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._run(), name="nimburion-redis-bell")
        if not self._subscribed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._subscribed.wait(), patience)

    async def _arm_all(self, queues: Collection[str]) -> None:
        unarmed = [queue for queue in queues if queue not in self._armed]
        if unarmed and self._subscribed.is_set():
            with suppress(BackendError):
                await self._arm(unarmed)
                self._armed.update(unarmed)

    def _ring(self, queues: Collection[str]) -> None:
        if EVERY_QUEUE in queues:
            self._armed.clear()
        self._armed.difference_update(queues)
        self._waiters.notify(queues)

    async def _run(self) -> None:
        """Listen, again after each failure. What rang meanwhile was missed: everybody looks."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - a loop in the background must not end
                self._note(error)
            if self._subscribed.is_set():
                pause = _FIRST_PAUSE
                self._subscribed.clear()
                self._ring([EVERY_QUEUE])
            self._servers.doubt()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _note(self, error: Exception) -> None:
        """An outage is said by those who need the server; what keeps only rings away is said here,
        once."""
        if isinstance(error, _OUTAGES) or str(error) == self._said:
            _log.debug("no rings for now: %s", error)
            return
        self._said = str(error)
        _log.warning(
            "queues are not heard to ring (%s); a job that waits for an idle worker begins when "
            "that looks again, each second or two",
            error,
        )

    async def _follow(self) -> None:
        wire = Wire(await self._servers.connect(), self._take)
        try:
            asked = pack_command((b"SUBSCRIBE", self.channel))  # type: ignore[arg-type]
            (reply,) = await wire.ask(asked, 1, _PATIENCE)
            if isinstance(reply, Exception):
                raise reply
            self._armed.clear()
            self._subscribed.set()
            self._said = ""
            await _until_lost(wire)
        finally:
            await wire.close()

    def _take(self, message: list[bytes]) -> None:
        if message[0] == b"message":
            self._ring(message[2].decode().split("\0"))


async def _until_lost(wire: Wire) -> None:
    """Return when the connection is lost. A server that is silent for long is asked whether it is
    there."""
    while wire.is_alive:
        words = wire.words
        await asyncio.wait({wire.lost}, timeout=_SILENCE)
        if wire.words == words and wire.is_alive:
            wire.send(_PING)
            await asyncio.wait({wire.lost}, timeout=_PATIENCE)
            if wire.words == words:
                raise TimeoutError(f"no word within {_PATIENCE:g} s")
