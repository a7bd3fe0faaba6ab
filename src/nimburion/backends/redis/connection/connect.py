"""Connect to one server: log in, read its role, and explain failures in one line."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec
from redis import exceptions as driver
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nimburion.backends.redis.errors import DRIVER_ERRORS, get_error_code, map_error
from nimburion.backends.redis.url import RedisSettings, RedisTls
from nimburion.backends.server.errors import (
    explain_network_error,
    explain_silence,
    explain_tls_error,
    is_socket_missing,
)
from nimburion.backends.server.url import Credentials, Endpoint
from nimburion.core.errors import BackendUnavailable, ConfigurationError, NimburionError

CLIENT_NAME = "nimburion"
"""The client name that CLIENT LIST shows."""

EndpointOrSocket = Endpoint | str
"""The host and port of a server, or the path of its socket."""
Role = Literal["primary", "replica", "sentinel", "unknown"]

_ROLES: Mapping[bytes, Role] = {b"master": "primary", b"slave": "replica", b"sentinel": "sentinel"}
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""Seconds of silence before the first probe, seconds between probes, and number of probes. A dead
peer is detected after 45 s.
"""
_CLOSE_TIMEOUT = 0.5
_PLAINTEXT_SIGNS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_EOF",
)


class ServerConnection(msgspec.Struct, frozen=True):
    """An open connection, and the role that its server reports."""

    connection: AbstractConnection
    role: Role
    primary: Endpoint | None = None
    """The primary of this server, if the server is a replica."""

    async def execute(self, *command: bytes | str | int) -> Any:  # noqa: ANN401 (what the server says)
        """Send one command and return its reply."""
        await self.connection.send_command(*command)
        return await self.connection.read_response()

    async def close(self) -> None:
        """Disconnect."""
        await disconnect(self.connection)


async def connect(
    endpoint: EndpointOrSocket,
    settings: RedisSettings,
    *,
    timeout: float,
    credentials: Credentials | None = None,
    db: int = 0,
) -> ServerConnection:
    """Connect to one server within `timeout` seconds.

    Raises:
        BackendUnavailable: the server cannot be reached or does not answer; nothing was written.
        ConfigurationError: the server rejects the login, or it is not a Redis server.
    """
    connection = _make_connection(
        endpoint,
        settings,
        settings.credentials if credentials is None else credentials,
        db,
        timeout,
    )
    try:
        async with asyncio.timeout(timeout):
            await connection.connect()  # type: ignore[no-untyped-call]
            return await _handshake(connection)
    except DRIVER_ERRORS as error:
        await disconnect(connection)
        raise map_connect_error(error, endpoint, settings, timeout) from error
    except BaseException:
        await disconnect(connection)
        raise


async def disconnect(connection: AbstractConnection) -> None:
    """Close a connection, and discard unsent data. A TLS connection waits briefly for the closing
    handshake.
    """
    writer = connection._writer  # noqa: SLF001 - the driver has no public name for it
    await connection.disconnect(nowait=True)
    if writer is None:
        return
    try:
        if not writer.transport.get_write_buffer_size():
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await writer.wait_closed()
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()


def _make_connection(
    endpoint: EndpointOrSocket,
    settings: RedisSettings,
    credentials: Credentials,
    db: int,
    timeout: float,
) -> AbstractConnection:
    """Create a connection that is not open yet. It does not retry. It sets no timeout for replies,
    because the caller sets one.
    """
    options: dict[str, Any] = {
        "db": db,
        "username": credentials.username,
        "password": credentials.password,
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    connection: AbstractConnection
    if isinstance(endpoint, str):
        connection = UnixDomainSocketConnection(path=endpoint, **options)
    else:
        options |= {"host": endpoint.host, "port": endpoint.port, "socket_keepalive": True}
        options |= {"socket_keepalive_options": _make_keepalive_options()}
        connection = (
            _make_tls_connection(settings.tls, options) if settings.tls else Connection(**options)
        )
    for attribute in (
        "driver_info",
        "lib_name",
        "lib_version",
    ):  # depends on version; a round trip each
        setattr(connection, attribute, None)
    return connection


def _make_keepalive_options() -> dict[int, int]:
    found = {getattr(socket, name, None): value for name, value in _KEEPALIVE}
    return {option: value for option, value in found.items() if option is not None}


def _make_tls_connection(tls: RedisTls, options: dict[str, Any]) -> AbstractConnection:
    """Create a TLS connection with a separate context. The driver's own context trusts the system's
    authorities in addition to `tls_ca`.
    """
    connection = SSLConnection(**options)
    connection.ssl_context.context = _make_tls_context(tls)
    return connection


def _make_tls_context(tls: RedisTls) -> ssl.SSLContext:
    """Create a TLS context. The files are read for each connection, so certificates can be replaced
    while the process runs.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except (OSError, ValueError) as error:
        raise ConfigurationError(_explain_unreadable("tls_ca", tls.ca, error)) from error
    context.check_hostname = tls.verify == "full"
    context.verify_mode = ssl.CERT_NONE if tls.verify == "none" else ssl.CERT_REQUIRED
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key, password="")
        except (OSError, ValueError) as error:
            files = tls.cert if tls.key is None else f"{tls.cert} with {tls.key}"
            raise ConfigurationError(_explain_unreadable("tls_cert", files, error)) from error
    return context


def _explain_unreadable(option: str, file: str | None, error: Exception) -> str:
    missing = isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
    why = cast("OSError", error).strerror if missing else f"not a valid PEM file ({error})"
    return f"{option}: {file} cannot be used: {why}"


async def _handshake(connection: AbstractConnection) -> ServerConnection:
    """Send the client name and read the role, in one round trip. The user may lack the permission
    for either command.
    """
    named = ("CLIENT", "SETNAME", CLIENT_NAME)
    await connection.send_packed_command(connection.pack_commands([named, ("ROLE",)]))
    await _read_reply_if_allowed(connection)
    role = await _read_reply_if_allowed(connection)
    if not isinstance(role, list) or not role:
        return ServerConnection(connection, "unknown")
    kind = _ROLES.get(role[0], "unknown")
    follows = Endpoint(role[1].decode(), int(role[2])) if kind == "replica" else None
    return ServerConnection(connection, kind, follows)


async def _read_reply_if_allowed(connection: AbstractConnection) -> object:
    try:
        return await connection.read_response()
    except driver.ResponseError as error:
        if get_error_code(error) not in {"NOPERM", "ERR"}:
            raise
        return None


# --- explanations of failures ---------------------------------------------------------------------


def map_connect_error(
    error: Exception, endpoint: EndpointOrSocket, settings: RedisSettings, timeout: float
) -> NimburionError:
    """Map an error while connecting to an error that explains the cause and suggests a fix."""
    where = settings.describe()
    if get_error_code(error):
        return map_error(error, where, sent=False)
    root = _find_os_error(error)
    problem = (
        _explain_tls_error(root, endpoint)
        if isinstance(root, ssl.SSLError)
        else _explain_network_error(root, endpoint)
        or _explain_timeout(root, endpoint, settings, timeout)
        or _explain_wrong_server(root, endpoint, settings)
    )
    if problem is None:
        return map_error(error, where, sent=False)
    return BackendUnavailable(f"{where}: {problem}", outcome="not applied")


def _find_os_error(error: Exception) -> BaseException:
    """Return the operating system's error that the driver's error wraps. The search goes no
    further, because earlier errors may belong to code of the caller.
    """
    made_of = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return made_of if isinstance(made_of, OSError) else error


def _explain_tls_error(error: ssl.SSLError, endpoint: EndpointOrSocket) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        if any(sign in str(error) for sign in _PLAINTEXT_SIGNS):
            return f"{endpoint} does not speak TLS; use redis:// there, or its TLS port"
        if "CERTIFICATE_REQUIRED" in str(error) or "HANDSHAKE_FAILURE" in str(error):
            return f"{endpoint} asks for our certificate; set tls_cert and tls_key"
    return explain_tls_error(error, endpoint, _advise_certificate)


def _advise_certificate(why: str) -> str:
    if "match" in why or "not valid for" in why:
        return "tls_verify=ca does not check the host name"
    return "set tls_ca to the certificate of its authority"


def _explain_network_error(error: BaseException, endpoint: EndpointOrSocket) -> str | None:
    if isinstance(endpoint, str) and is_socket_missing(error):
        return f"there is no socket {endpoint}; start the server, or correct the path"
    return explain_network_error(error, endpoint)


def _explain_timeout(
    error: BaseException, endpoint: EndpointOrSocket, settings: RedisSettings, timeout: float
) -> str | None:
    if not isinstance(error, TimeoutError | driver.TimeoutError):
        return None
    return explain_silence(endpoint, timeout, "; does it speak TLS at all?" if settings.tls else "")


def _explain_wrong_server(
    error: BaseException, endpoint: EndpointOrSocket, settings: RedisSettings
) -> str | None:
    """Explain the case that the other side is not Redis, or expects TLS and the URL does not."""
    if isinstance(error, driver.InvalidResponse):
        if any(sign in str(error) for sign in ("\x15", "\\x15")):
            return f"{endpoint} speaks TLS; use rediss:// there"
        return f"what answers at {endpoint} is no Redis ({error}); correct host and port"
    lost = isinstance(error, driver.ConnectionError | OSError | EOFError)
    if lost and "max number of clients" not in str(error):
        return (
            f"{endpoint} closed the connection without a reply. {_guess_cause(endpoint, settings)}"
        )
    return None


def _guess_cause(endpoint: EndpointOrSocket, settings: RedisSettings) -> str:
    """Suggest why the server closed the connection at once."""
    if isinstance(endpoint, str):
        return "Is it a Redis server?"
    if settings.tls is None:
        return "Is it a Redis server? If it speaks TLS, use rediss://"
    if settings.tls.cert is None:
        return "If it asks for our certificate, set tls_cert and tls_key"
    return "Does it accept our certificate?"
