"""Connect to one server, and explain failures."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import asyncpg
import msgspec

from nimburion.backends.postgres.errors import (
    DRIVER_ERRORS,
    get_error_code,
    is_cut_short,
    map_error,
)
from nimburion.backends.postgres.url import PostgresSettings, PostgresTls
from nimburion.backends.server.errors import (
    explain_network_error,
    explain_silence,
    explain_tls_error,
    is_socket_missing,
)
from nimburion.backends.server.url import Endpoint
from nimburion.core.errors import (
    BackendReadOnly,
    BackendUnavailable,
    ConfigurationError,
    NimburionError,
)
from nimburion.core.text.redaction import redact_urls

Driver = Any
"""The driver's connection: `asyncpg.Connection`."""
OLDEST_SERVER = 150_000
"""The `server_version_num` of the oldest server version in the test suite."""

_CONNECTION_LOST = (
    ConnectionError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_SERVER_INFO_QUERY = """SELECT pg_backend_pid(), current_setting('server_version_num')::int4,
    current_setting('default_transaction_isolation'), pg_is_in_recovery(),
    current_setting('transaction_read_only')"""


_ARRAYS: Mapping[int, tuple[str, int]] = MappingProxyType(
    {1000: ("_bool", 16), 1001: ("_bytea", 17), 1005: ("_int2", 21), 1007: ("_int4", 23)}
    | {1016: ("_int8", 20), 1022: ("_float8", 701)}
)
"""The array types in the backend's statements, by OID, as name and element type OID. No version of
PostgreSQL changes these numbers.
"""


class _Connection(asyncpg.Connection):
    """A driver connection that knows the array types of the backend's statements without a lookup.

    The driver itself knows only scalar types and text[]. For other types it queries the catalog
    between parsing a statement and running it for the first time. That costs three more round trips
    per connection. A statement_timeout or a lock can interrupt them, and they change `jit` of the
    session. The overridden method is private. If a later driver does not call it, types are looked
    up as before.
    """

    __slots__ = ()

    async def _introspect_types(self, typeoids: Iterable[int], timeout: float | None) -> Any:  # noqa: ANN401 - the driver's
        wanted = list(typeoids)
        if not all(number in _ARRAYS for number in wanted):
            return await super()._introspect_types(wanted, timeout)  # type: ignore[misc]
        return [_make_array_type(number) for number in wanted], _NoLookUp


class _NoLookUp:
    """Stands in for the statement of a type lookup. It has a name, so the driver knows that no
    unnamed statement was replaced.
    """

    name = "none"


def _make_array_type(number: int) -> dict[str, Any]:
    name, element = _ARRAYS[number]
    unused = ("basetype", "range_subtype", "attrtypoids", "attrnames")
    return dict.fromkeys(unused) | {
        "oid": number,
        "ns": "pg_catalog",
        "name": name,
        "kind": b"b",
        "elemtype": element,
        "elemdelim": b",",
        "elemtype_name": name[1:],
    }


class PostgresServerInfo(msgspec.Struct, frozen=True):
    """The properties of the server at the other end of a connection."""

    version: int
    """`server_version_num` of the server."""
    pooled: bool
    """Whether a pooler assigns another server connection to each transaction."""
    isolation: str
    """The default isolation level of transactions."""
    standby: bool
    read_only: bool


class OpenConnection(msgspec.Struct, frozen=True):
    """A driver connection, its endpoint and its server."""

    driver: Driver
    endpoint: Endpoint | None
    server: PostgresServerInfo


async def connect(settings: PostgresSettings, endpoint: Endpoint | None) -> OpenConnection:
    """Connect to one server within the timeout of the settings, and check the server.

    Raises:
        BackendUnavailable: the server cannot be reached, or takes no writes; nothing was written.
        BackendReadOnly: the server is configured to take no writes.
        ConfigurationError: the server rejects the login, or is too old.
    """
    driver: Driver = None
    try:
        async with asyncio.timeout(settings.timeout):
            driver = await asyncpg.connect(**_make_driver_options(settings, endpoint))
            connection = OpenConnection(driver, endpoint, await _read_server_info(driver, settings))
            check_server(connection.server, settings)
            return connection
    except DRIVER_ERRORS as error:
        disconnect(driver)
        raise map_connect_error(error, endpoint, settings) from error
    except BaseException:
        disconnect(driver)
        raise


def disconnect(driver: Driver) -> None:
    """Close a connection at once. The server finishes or rolls back the current statement."""
    if driver is not None and not driver.is_closed():
        driver.terminate()


def _make_driver_options(settings: PostgresSettings, endpoint: Endpoint | None) -> dict[str, Any]:
    """Return the options for the driver. Its statement cache is off, because a pooler may not
    support it; `PostgresConnection` caches statements instead.
    """
    options: dict[str, Any] = {
        "dsn": _make_dsn(settings.tls),
        "user": settings.credentials.username,
        "password": settings.credentials.password,
        "database": settings.database,
        "timeout": settings.timeout,
        "statement_cache_size": 0,
        "connection_class": _Connection,
        "server_settings": {"application_name": settings.application_name},
        "target_session_attrs": "any",
    }
    return options if endpoint is None else options | {"host": endpoint.host, "port": endpoint.port}


def _make_dsn(tls: PostgresTls) -> str:
    """Return a URL with the TLS settings, because the driver accepts TLS files only in a URL."""
    named = {name: getattr(tls, name) for name in tls.__struct_fields__}
    return "postgresql://?" + urlencode({name: value for name, value in named.items() if value})


async def _read_server_info(driver: Driver, settings: PostgresSettings) -> PostgresServerInfo:
    statement = await driver.prepare(_SERVER_INFO_QUERY, name="")
    row = await statement.fetchrow()
    pid, version, isolation, standby, read_only = row
    pooled = (
        pid != driver.get_server_pid() if settings.pooler == "auto" else settings.pooler == "yes"
    )
    return PostgresServerInfo(version, pooled, isolation, standby, read_only == "on")


def check_server(server: PostgresServerInfo, settings: PostgresSettings) -> None:
    """Raise an error if the server is not suitable."""
    where, target = settings.describe(), settings.target or "read-write"
    if server.version < OLDEST_SERVER:
        raise ConfigurationError(
            f"{where}: the server is PostgreSQL {server.version // 10_000}; nimburion needs "
            f"{OLDEST_SERVER // 10_000} or newer"
        )
    if target in {"primary", "read-write"} and server.standby:
        raise BackendUnavailable(
            f"{where}: the server is a standby and takes no writes; name the primary, or all "
            "servers separated by commas",
            outcome="not applied",
        )
    if target == "read-write" and server.read_only:
        raise BackendReadOnly(
            f"{where}: this database or role is read-only "
            "(default_transaction_read_only); nothing was written"
        )
    if target in {"standby", "read-only"} and not (server.standby or server.read_only):
        problem = f"{where}: the server takes writes, but target_session_attrs is {target}"
        raise BackendUnavailable(problem, outcome="not applied")


# --- explanations of failures ---------------------------------------------------------------------


def map_connect_error(
    error: Exception, endpoint: Endpoint | None, settings: PostgresSettings
) -> NimburionError:
    """Map an error while connecting to an error that explains the cause and suggests a fix."""
    where = settings.describe()
    place = str(endpoint) if endpoint else "the server"
    if get_error_code(error) and not isinstance(error, asyncpg.ConnectionDoesNotExistError):
        return _map_pooler_error(error, where) or map_error(error, where, sent=False)
    problem = (
        _explain_tls_error(error, place, settings.tls)
        or _explain_network_error(error, place)
        or _explain_timeout(error, place, settings)
        or _explain_wrong_server(error, place)
    )
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigurationError(f"{where}: {redact_urls(str(error))}")
    if problem is None:
        return map_error(error, where, sent=False)
    return BackendUnavailable(f"{where}: {problem}", outcome="not applied")


def _map_pooler_error(error: Exception, where: str) -> NimburionError | None:
    """Map a refusal by PgBouncer, which reports every refusal with the code of a protocol
    violation.
    """
    text = redact_urls(str(error))
    if get_error_code(error) != "08P01":
        return None
    if "no such database" in text:
        return ConfigurationError(f"{where}: the pooler has no such database ({text})")
    if "auth" in text or "no such user" in text:
        return ConfigurationError(f"{where}: the pooler refused the login ({text})")
    return None


def _explain_tls_error(error: Exception, endpoint: str, tls: PostgresTls) -> str | None:
    if isinstance(error, ssl.SSLError):
        return explain_tls_error(error, endpoint, lambda _: "see sslrootcert and sslmode")
    if "rejected SSL upgrade" in str(error) and tls.sslmode in {None, "allow", "prefer"}:
        return f"{endpoint} is not a PostgreSQL server; correct host and port"
    if "rejected SSL upgrade" in str(error):
        return f"{endpoint} does not support TLS; enable it there, or leave out sslmode"
    return None


def _explain_network_error(error: Exception, endpoint: str) -> str | None:
    if is_socket_missing(error):
        return (
            f"there is no socket or file for {endpoint} ({error}); start the server, or correct it"
        )
    return explain_network_error(error, endpoint)


def _explain_timeout(error: Exception, endpoint: str, settings: PostgresSettings) -> str | None:
    if not isinstance(error, TimeoutError):
        return None
    return explain_silence(
        endpoint, settings.timeout, "; check that a PostgreSQL server runs there"
    )


def _explain_wrong_server(error: Exception, endpoint: str) -> str | None:
    if not isinstance(error, _CONNECTION_LOST):
        return None
    reason = "during a reply" if is_cut_short(error) else str(error)
    return (
        f"{endpoint} closed the connection: it restarts, or is not a PostgreSQL server ({reason})"
    )
