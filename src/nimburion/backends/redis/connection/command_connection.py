"""One connection to the server: one request at a time, made anew when it broke.

A request is sent once. What became of one that got no answer is not guessed here: the error says
what may be concluded, and whoever asked repeats it by its id, number or token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hiredis import pack_command

from nimburion.backends.redis.connection.protocol import RedisProtocol
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.errors import (
    DRIVER_ERRORS,
    breaks_connection,
    lacks_script,
    map_error,
    needs_other_server,
    parse_redirect,
    spoils_session,
)
from nimburion.core.errors import BackendUnavailable, ConfigurationError, NimburionError

if TYPE_CHECKING:
    from nimburion.backends.redis.scripts import Script

CommandPart = bytes | str | int


class _NoScript(Exception):
    """The server was restarted, or told to forget its scripts. Nothing was written."""


class CommandConnection:
    """A connection of one event loop. Connects when it is first used."""

    def __init__(self, locator: ServerLocator, where: str, timeout: float) -> None:
        self._locator = locator
        self._where = where
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._protocol: RedisProtocol | None = None
        self.is_verified: bool = False
        """Set when the server was reached and found fit by the settings it has."""
        self.connection_count: int = 0
        """How many there were so far: the same number, the same server without a break."""

    async def execute(self, *command: CommandPart) -> Any:  # noqa: ANN401 - a reply is what the server says
        """Send a command; its reply.

        Raises:
            BackendError: refused, or not answered; `faults.py` says which.
        """
        async with self._lock:
            (reply,) = await self._request([command])
            return reply

    async def run_script(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[CommandPart],
        *,
        before: Sequence[tuple[CommandPart, ...]] = (),
        after: Sequence[tuple[CommandPart, ...]] = (),
        long_poll: float = 0.0,
    ) -> list[Any]:
        """Run a script by its hash, with commands ahead of it and behind it in the same trip; the
        replies. They may wait for `long poll` seconds more than others. A server that does not know
        the script is given it, and all is asked again."""
        count = b"%d" % len(keys)
        async with self._lock:
            try:
                known = (b"EVALSHA", script.sha, count, *keys, *arguments)
                return await self._request([*before, known, *after], long_poll)
            except _NoScript:
                told = (b"EVAL", script.text, count, *keys, *arguments)
                return await self._request([*before, told, *after], long_poll)

    async def close(self) -> None:
        """Hang up. Repeatable; the next request connects anew."""
        wire, self._protocol = self._protocol, None
        if wire is not None:
            await wire.close()

    async def _request(
        self, commands: Sequence[tuple[CommandPart, ...]], long_poll: float = 0.0
    ) -> list[Any]:
        """The reply to each; `_NoScript` when one names a script that the server lacks."""
        wire = self._protocol
        if wire is None or not wire.is_alive:
            wire = await self._reconnect()  # it has a time of its own, and says why it took it
        sent = False
        try:
            packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]
            sent = True
            replies = await wire.request(packed, len(commands), self._timeout + long_poll)
        except (TimeoutError, *DRIVER_ERRORS) as error:
            await self._handle_error(error)
            raise map_error(error, self._where, sent=sent) from error
        except BaseException:  # cancelled with a reply on its way: the next would get it
            await self.close()
            raise
        for reply in replies:
            if isinstance(reply, Exception):
                if lacks_script(reply):
                    raise _NoScript
                await self._handle_error(reply)
                raise self._meaning_of(reply) from reply
        return replies

    async def _reconnect(self) -> RedisProtocol:
        """A new connection, instead of one that broke."""
        await self.close()
        self._protocol = wire = await self._connect()
        self.connection_count += 1
        return wire

    def _meaning_of(self, reply: Exception) -> NimburionError:
        """A connection that is logged out has been replaced: whoever asks is to ask again."""
        meant = map_error(reply, self._where, sent=True)
        if self.is_verified and isinstance(meant, ConfigurationError) and spoils_session(reply):
            return BackendUnavailable(str(meant), outcome="not applied")
        return meant

    async def _connect(self) -> RedisProtocol:
        """Connect. What was right and is refused now (a password that was changed, a server that
        is another one) may be right again: whoever asks is to ask again, as in any outage."""
        try:
            return RedisProtocol(await self._locator.connect())
        except ConfigurationError as error:
            if not self.is_verified:
                raise
            raise BackendUnavailable(str(error), outcome="not applied") from error

    async def _handle_error(self, error: BaseException) -> None:
        """Leave a connection that is of no use any more; look again for who takes writes."""
        node = parse_redirect(error)
        if node is not None:
            self._locator.redirect(node)
        elif needs_other_server(error) or breaks_connection(error):
            self._locator.invalidate()
        if needs_other_server(error) or breaks_connection(error) or spoils_session(error):
            await self.close()
