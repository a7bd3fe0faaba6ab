"""The management server: listens on its address, on the event loop of the process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from nimburion.core.access_rights import is_loopback
from nimburion.core.errors import ConfigurationError
from nimburion.core.settings import ServerSettings
from nimburion.server.request_limits import TimedConnection

_log = logging.getLogger("nimburion.server")

_KEEP_ALIVE = 5
_CLOSE_WITHIN = 2
"""Seconds that requests get to end when the server stops."""


class ManagementServer:
    """An HTTP server on the running event loop. It leaves the signals to the process."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._server: _QuietServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port: int = settings.port
        """The port; where the setting is 0, the chosen one once the server was started."""

    @property
    def url(self) -> str:
        """The address as a URL."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Listen, and answer requests in the background.

        Raises:
            ConfigurationError: the address cannot be used.
        """
        listener = bind(self._settings)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            access_log=False,
            date_header=False,
            http=TimedConnection,
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_WITHIN,
            timeout_keep_alive=_KEEP_ALIVE,
            ws="none",
        )
        self._server = _QuietServer(config)
        serving = self._server.serve(sockets=[listener])
        self._serving = asyncio.create_task(serving, name="nimburion-management-server")
        await self._server.wait_until_listening(self._serving)
        _log.info("management server: %s (%s)", self.url, self._describe_access())

    async def stop(self) -> None:
        """Stop listening; requests that are being answered get two seconds. You can call it
        repeatedly.
        """
        server, self._server = self._server, None
        if server is not None and self._serving is not None:
            server.stop()
            await asyncio.wait({self._serving})

    def _describe_access(self) -> str:
        if self._settings.tokens:
            return f"tokens: {', '.join(token.name for token in self._settings.tokens)}"
        return "no tokens: every user of this host has all rights"


def bind(settings: ServerSettings) -> socket.socket:
    """Return a socket that is bound to the address. Raises `ConfigurationError`."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"server.host: {host}: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)  # noqa: FBT003 (its only argument)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_explain_bind_error(error, settings)) from None
    if not is_loopback(address[0] if isinstance(address[0], str) else host) and not settings.tokens:
        listener.close()
        raise ConfigurationError(f"server.host: {host} is {address[0]}, which is not loopback")
    return listener


def _explain_bind_error(error: OSError, settings: ServerSettings) -> str:
    place = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"server.port: {place} is in use; choose another server.port for this process, or set "
            "`enabled: false` under server"
        )
    return f"server.host: {place} cannot be used: {error.strerror or error}"


class _QuietServer(uvicorn.Server):
    """A server that handles no signals, and that sleeps while nothing happens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._listening = asyncio.Event()
        self._stopping = asyncio.Event()

    async def wait_until_listening(self, serving: asyncio.Task[None]) -> None:
        """Return when connections are accepted. Raises the exception of `serving` if it fails."""
        listening = asyncio.create_task(self._listening.wait())
        await asyncio.wait({listening, serving}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if serving.done():
            serving.result()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()

    def stop(self) -> None:
        """Stop listening, and end the connections."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)  # makes the headers of all answers
        await self._stopping.wait()
