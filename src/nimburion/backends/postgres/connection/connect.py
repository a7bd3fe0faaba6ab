"""Connecting to one server, and why it did not work."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import asyncpg
import msgspec

from nimburion.backends.postgres.errors import FAULTS, code_of, is_cut_short, meaning_of
from nimburion.backends.postgres.url import Address, Tls
from nimburion.backends.server.errors import (
    explain_network_error,
    explain_silence,
    explain_tls_error,
    is_socket_missing,
)
from nimburion.backends.server.url import Node
from nimburion.core.errors import (
    BackendUnavailable,
    ConfigurationError,
    NimburionError,
    StoreReadOnly,
)
from nimburion.core.redaction import redact_urls

Driver = Any
"""The driver's connection: `asyncpg.Connection`."""
OLDEST = 150_000
"""The `server_version_num` of the oldest server that the tests run on."""

_HUNG_UP = (
    ConnectionError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_LOOK = """SELECT pg_backend_pid(), current_setting('server_version_num')::int4,
    current_setting('default_transaction_isolation'), pg_is_in_recovery(),
    current_setting('transaction_read_only')"""


_ARRAYS: Mapping[int, tuple[str, int]] = MappingProxyType(
    {1000: ("_bool", 16), 1001: ("_bytea", 17), 1005: ("_int2", 21), 1007: ("_int4", 23)}
    | {1016: ("_int8", 20), 1022: ("_float8", 701)}
)
"""The arrays in our statements, by their numbers, which no version of PostgreSQL ever changes:
name, and number of the element's type."""


class _Connection(asyncpg.Connection):
    """Knows the array types of our statements, so that it does not look them up.

    The driver knows only scalar types and text[]. For others it queries the catalog between the
    parsing of a statement and its first run: three more trips for each connection, in which a
    statement_timeout or a lock can strike, and which change `jit` of the session. The overridden
    method is private: where a later driver does not call it, types are looked up as before.
    """

    __slots__ = ()

    async def _introspect_types(self, typeoids: Iterable[int], timeout: float | None) -> Any:  # noqa: ANN401 - the driver's
        wanted = list(typeoids)
        if not all(number in _ARRAYS for number in wanted):
            return await super()._introspect_types(wanted, timeout)  # type: ignore[misc]
        return [_array_type(number) for number in wanted], _NoLookUp


class _NoLookUp:
    """Stands for the statement of a look-up: a name says that no unnamed one was replaced."""

    name = "none"


def _array_type(number: int) -> dict[str, Any]:
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


class Seen(msgspec.Struct, frozen=True):
    """What a connection says of the server at its other end."""

    version: int
    """`server_version_num`."""
    pooled: bool
    """Somebody stands between who lends us another connection for each transaction."""
    isolation: str
    """Of transactions that do not say it themselves."""
    standby: bool
    read_only: bool


class Call(msgspec.Struct, frozen=True):
    """A connection, and what it leads to."""

    driver: Driver
    node: Node | None
    seen: Seen


async def dial(address: Address, node: Node | None) -> Call:
    """Connect to one server within the address's timeout, and look at it.

    Raises:
        BackendUnavailable: it cannot be reached, or takes no writes just now; nothing was written.
        StoreReadOnly: it was set up to take no writes.
        ConfigurationError: it does not let us in, or is too old.
    """
    driver: Driver = None
    try:
        async with asyncio.timeout(address.timeout):
            driver = await asyncpg.connect(**_options(address, node))
            call = Call(driver, node, await _look(driver, address))
            check(call.seen, address)
            return call
    except FAULTS as error:
        hang_up(driver)
        raise why_not(error, node, address) from error
    except BaseException:
        hang_up(driver)
        raise


def hang_up(driver: Driver) -> None:
    """End a connection at once; what it was doing is undone or done without us."""
    if driver is not None and not driver.is_closed():
        driver.terminate()


def _options(address: Address, node: Node | None) -> dict[str, Any]:
    """The driver keeps no statements of its own: we do, as what stands between may not."""
    options: dict[str, Any] = {
        "dsn": _dsn(address.tls),
        "user": address.login.username,
        "password": address.login.password,
        "database": address.database,
        "timeout": address.timeout,
        "statement_cache_size": 0,
        "connection_class": _Connection,
        "server_settings": {"application_name": address.application_name},
        "target_session_attrs": "any",
    }
    return options if node is None else options | {"host": node.host, "port": node.port}


def _dsn(tls: Tls) -> str:
    """The driver takes the files of TLS only in a URL."""
    named = {name: getattr(tls, name) for name in tls.__struct_fields__}
    return "postgresql://?" + urlencode({name: one for name, one in named.items() if one})


async def _look(driver: Driver, address: Address) -> Seen:
    statement = await driver.prepare(_LOOK, name="")
    row = await statement.fetchrow()
    pid, version, isolation, standby, read_only = row
    pooled = pid != driver.get_server_pid() if address.pooler == "auto" else address.pooler == "yes"
    return Seen(version, pooled, isolation, standby, read_only == "on")


def check(seen: Seen, address: Address) -> None:
    """Refuse a server that will not do."""
    where, target = address.describe(), address.target or "read-write"
    if seen.version < OLDEST:
        raise ConfigurationError(
            f"{where}: the server is PostgreSQL {seen.version // 10_000}; nimburion needs "
            f"{OLDEST // 10_000} or newer"
        )
    if target in {"primary", "read-write"} and seen.standby:
        raise BackendUnavailable(
            f"{where}: the server is a standby and takes no writes; name the primary, or all of "
            "them with commas between",
            outcome="not applied",
        )
    if target == "read-write" and seen.read_only:
        raise StoreReadOnly(
            f"{where}: this database or role was set to take no writes "
            "(default_transaction_read_only); nothing was written"
        )
    if target in {"standby", "read-only"} and not (seen.standby or seen.read_only):
        problem = f"{where}: the server takes writes, but target_session_attrs is {target}"
        raise BackendUnavailable(problem, outcome="not applied")


# --- why it did not work --------------------------------------------------------------------------


def why_not(error: Exception, node: Node | None, address: Address) -> NimburionError:
    """What kept us from connecting, and what to do about it."""
    where = address.describe()
    place = str(node) if node else "the server"
    if code_of(error) and not isinstance(error, asyncpg.ConnectionDoesNotExistError):
        return _of_pooler(error, where) or meaning_of(error, where, sent=False)
    problem = (
        _of_tls(error, place, address.tls)
        or _of_network(error, place)
        or _of_silence(error, place, address)
        or _of_strangers(error, place)
    )
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigurationError(f"{where}: {redact_urls(str(error))}")
    if problem is None:
        return meaning_of(error, where, sent=False)
    return BackendUnavailable(f"{where}: {problem}", outcome="not applied")


def _of_pooler(error: Exception, where: str) -> NimburionError | None:
    """PgBouncer refuses everything with the code of a broken protocol."""
    text = redact_urls(str(error))
    if code_of(error) != "08P01":
        return None
    if "no such database" in text:
        return ConfigurationError(f"{where}: the pooler has no such database ({text})")
    if "auth" in text or "no such user" in text:
        return ConfigurationError(f"{where}: the pooler does not let us in ({text})")
    return None


def _of_tls(error: Exception, place: str, tls: Tls) -> str | None:
    if isinstance(error, ssl.SSLError):
        return explain_tls_error(error, place, lambda _: "see sslrootcert and sslmode")
    if "rejected SSL upgrade" in str(error) and tls.sslmode in {None, "allow", "prefer"}:
        return f"{place} does not answer like a PostgreSQL server; correct host and port"
    if "rejected SSL upgrade" in str(error):
        return f"{place} does not speak TLS; let it, or leave sslmode out"
    return None


def _of_network(error: Exception, place: str) -> str | None:
    if is_socket_missing(error):
        return f"there is no socket or file for {place} ({error}); start the server, or correct it"
    return explain_network_error(error, place)


def _of_silence(error: Exception, place: str, address: Address) -> str | None:
    if not isinstance(error, TimeoutError):
        return None
    return explain_silence(place, address.timeout, ": is it up, and PostgreSQL?")


def _of_strangers(error: Exception, place: str) -> str | None:
    if not isinstance(error, _HUNG_UP):
        return None
    words = "in the middle of an answer" if is_cut_short(error) else str(error)
    return f"{place} hung up: it restarts, or is no PostgreSQL server ({words})"
