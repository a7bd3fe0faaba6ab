"""One connection to the server: one request at a time, made anew when it broke.

A request is sent once. What became of one that got no answer is not guessed here: the error says
what may be concluded, and whoever asked repeats it by its id, number or token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hiredis import pack_command

from nimburion.backends.redis.connection.protocol import Wire
from nimburion.backends.redis.connection.topology import Servers
from nimburion.backends.redis.errors import (
    FAULTS,
    breaks_connection,
    lacks_script,
    meaning_of,
    moves_on,
    redirect_of,
    spoils_session,
)
from nimburion.core.errors import BackendUnavailable, ConfigurationError, NimburionError

if TYPE_CHECKING:
    from nimburion.backends.redis.scripts import Script

Part = bytes | str | int


class _NoScript(Exception):
    """The server was restarted, or told to forget its scripts. Nothing was written."""


class Line:
    """A connection of one event loop. Connects when it is first used."""

    def __init__(self, servers: Servers, where: str, timeout: float) -> None:
        self._servers = servers
        self._where = where
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._wire: Wire | None = None
        self.proven: bool = False
        """Set when the server was reached and found fit by the settings it has."""
        self.connections: int = 0
        """How many there were so far: the same number, the same server without a break."""

    async def call(self, *command: Part) -> Any:  # noqa: ANN401 - a reply is what the server says
        """Send a command; its reply.

        Raises:
            BackendError: refused, or not answered; `faults.py` says which.
        """
        async with self._turn:
            (reply,) = await self._ask([command])
            return reply

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Part],
        *,
        ahead: Sequence[tuple[Part, ...]] = (),
        then: Sequence[tuple[Part, ...]] = (),
        patience: float = 0.0,
    ) -> list[Any]:
        """Run a script by its hash, with commands ahead of it and behind it in the same trip; the
        replies. They may wait for `patience` seconds more than others. A server that does not know
        the script is given it, and all is asked again."""
        count = b"%d" % len(keys)
        async with self._turn:
            try:
                known = (b"EVALSHA", script.sha, count, *keys, *arguments)
                return await self._ask([*ahead, known, *then], patience)
            except _NoScript:
                told = (b"EVAL", script.text, count, *keys, *arguments)
                return await self._ask([*ahead, told, *then], patience)

    async def close(self) -> None:
        """Hang up. Repeatable; the next request connects anew."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def _ask(self, commands: Sequence[tuple[Part, ...]], patience: float = 0.0) -> list[Any]:
        """The reply to each; `_NoScript` when one names a script that the server lacks."""
        wire = self._wire
        if wire is None or not wire.is_alive:
            wire = await self._connected()  # it has a time of its own, and says why it took it
        sent = False
        try:
            packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]
            sent = True
            replies = await wire.ask(packed, len(commands), self._timeout + patience)
        except (TimeoutError, *FAULTS) as error:
            await self._after(error)
            raise meaning_of(error, self._where, sent=sent) from error
        except BaseException:  # cancelled with a reply on its way: the next would get it
            await self.close()
            raise
        for reply in replies:
            if isinstance(reply, Exception):
                if lacks_script(reply):
                    raise _NoScript
                await self._after(reply)
                raise self._meaning_of(reply) from reply
        return replies

    async def _connected(self) -> Wire:
        """A new connection, instead of one that broke."""
        await self.close()
        self._wire = wire = await self._dial()
        self.connections += 1
        return wire

    def _meaning_of(self, reply: Exception) -> NimburionError:
        """A connection that is logged out has been replaced: whoever asks is to ask again."""
        meant = meaning_of(reply, self._where, sent=True)
        if self.proven and isinstance(meant, ConfigurationError) and spoils_session(reply):
            return BackendUnavailable(str(meant), outcome="not applied")
        return meant

    async def _dial(self) -> Wire:
        """Connect. What was right and is refused now (a password that was changed, a server that
        is another one) may be right again: whoever asks is to ask again, as in any outage."""
        try:
            return Wire(await self._servers.connect())
        except ConfigurationError as error:
            if not self.proven:
                raise
            raise BackendUnavailable(str(error), outcome="not applied") from error

    async def _after(self, error: BaseException) -> None:
        """Leave a connection that is of no use any more; look again for who takes writes."""
        node = redirect_of(error)
        if node is not None:
            self._servers.moved(node)
        elif moves_on(error) or breaks_connection(error):
            self._servers.doubt()
        if moves_on(error) or breaks_connection(error) or spoils_session(error):
            await self.close()
