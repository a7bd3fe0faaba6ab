"""A connection to the server that sends one request at a time and reconnects after a failure.

A request is sent once. If no reply arrives, the error says whether the request may have been
applied. The caller repeats the request; its id, number or token makes that safe.
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
    """The server does not have the script: it restarted, or its scripts were flushed. Nothing was
    written.
    """


class CommandConnection:
    """A connection that belongs to one event loop. Connects on first use."""

    def __init__(self, locator: ServerLocator, where: str, timeout: float) -> None:
        self._locator = locator
        self._where = where
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._protocol: RedisProtocol | None = None
        self.is_verified: bool = False
        """Whether the server was reached with these settings and passed the checks."""
        self._was_used = False
        """Whether a request was sent since `close_if_unused` was last called."""
        self.connection_count: int = 0
        """The number of connections so far. While it is unchanged, the connection was not
        interrupted.
        """

    async def execute(self, *command: CommandPart) -> Any:  # noqa: ANN401 - a reply is what the server says
        """Send a command and return its reply.

        Raises:
            BackendError: the server returned an error or no reply; `errors.py` maps the cause.
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
        """Run a script by its hash, with commands before and after it in one request. Return all
        replies. The replies may take `long_poll` seconds longer than those of other requests. If
        the server does not have the script, it is loaded and the whole request is sent again.
        """
        count = b"%d" % len(keys)
        async with self._lock:
            try:
                by_hash = (b"EVALSHA", script.sha, count, *keys, *arguments)
                return await self._request([*before, by_hash, *after], long_poll)
            except _NoScript:
                by_text = (b"EVAL", script.text, count, *keys, *arguments)
                return await self._request([*before, by_text, *after], long_poll)

    async def close_if_unused(self) -> None:
        """Disconnect if no request was sent since the last call of this method."""
        was_used, self._was_used = self._was_used, False
        if not was_used and not self._lock.locked():
            await self.close()

    async def close(self) -> None:
        """Disconnect. You can call it more than once; the next request connects again."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            await protocol.close()

    async def _request(
        self, commands: Sequence[tuple[CommandPart, ...]], long_poll: float = 0.0
    ) -> list[Any]:
        """Send commands and return their replies.

        Raises:
            _NoScript: a command names a script that the server does not have.
        """
        protocol = self._protocol
        if protocol is None or not protocol.is_alive:
            protocol = await self._reconnect()  # it has its own timeout and error messages
        sent, self._was_used = False, True
        try:
            packed = b"".join(map(pack_command, commands))  # type: ignore[arg-type]
            sent = True
            replies = await protocol.request(packed, len(commands), self._timeout + long_poll)
        except (TimeoutError, *DRIVER_ERRORS) as error:
            await self._handle_error(error)
            raise map_error(error, self._where, sent=sent) from error
        except BaseException:  # cancelled: the next request would read the outstanding reply
            await self.close()
            raise
        for reply in replies:
            if isinstance(reply, Exception):
                if lacks_script(reply):
                    raise _NoScript
                await self._handle_error(reply)
                raise self._map_error(reply) from reply
        return replies

    async def _reconnect(self) -> RedisProtocol:
        """Replace a broken connection by a new one."""
        await self.close()
        self._protocol = protocol = await self._connect()
        self.connection_count += 1
        return protocol

    def _map_error(self, reply: Exception) -> NimburionError:
        """Map an error reply. If a verified connection was logged out, it has been replaced, so the
        error is `BackendUnavailable` and the caller retries.
        """
        meant = map_error(reply, self._where, sent=True)
        if self.is_verified and isinstance(meant, ConfigurationError) and spoils_session(reply):
            return BackendUnavailable(str(meant), outcome="not applied")
        return meant

    async def _connect(self) -> RedisProtocol:
        """Connect. After a first success, a refusal counts as an outage, so that the caller
        retries. The cause, such as a changed password or another server, may be temporary.
        """
        try:
            return RedisProtocol(await self._locator.connect())
        except ConfigurationError as error:
            if not self.is_verified:
                raise
            raise BackendUnavailable(str(error), outcome="not applied") from error

    async def _handle_error(self, error: BaseException) -> None:
        """Close an unusable connection, and locate the server that takes writes again."""
        node = parse_redirect(error)
        if node is not None:
            self._locator.redirect(node)
        elif needs_other_server(error) or breaks_connection(error):
            self._locator.invalidate()
        if needs_other_server(error) or breaks_connection(error) or spoils_session(error):
            await self.close()
