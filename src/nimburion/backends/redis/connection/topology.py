"""Locate the server that takes writes: a single server, Sentinel's primary or a cluster node.

Each kind has a class behind the common `ServerLocator`. A location is cached until it is
invalidated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot

from nimburion.backends.redis.connection.connect import (
    EndpointOrSocket,
    ServerConnection,
    connect,
    map_connect_error,
)
from nimburion.backends.redis.errors import DRIVER_ERRORS
from nimburion.backends.redis.url import RedisSettings, ServerKind
from nimburion.backends.server.url import Endpoint
from nimburion.core.errors import BackendUnavailable, ConfigurationError

_MAX_REASONS = 3
_MAX_ASKED = 4
"""The largest number of nodes queried in one search, besides those in the URL. Large clusters have
hundreds.
"""


class ServerLocator:
    """Locates the server that takes the writes of a backend, and connects to it.

    Args:
        settings: the settings from the URL.
        timeout: seconds for one `connect`, including all queries to locate the server; None: the
            timeout of the settings.
    """

    __slots__ = ("_settings", "_timeout", "_topology")

    def __init__(self, settings: RedisSettings, *, timeout: float | None = None) -> None:
        self._settings = settings
        self._timeout = settings.timeout if timeout is None else timeout
        self._topology = _TOPOLOGIES[settings.kind](settings)

    async def connect(self) -> AbstractConnection:
        """Return an open connection to the server that takes writes, logged in and with its db
        selected.

        The connection has no timeout of its own and does not retry.

        Raises:
            BackendUnavailable: no server answers, or none takes writes now; outcome `not applied`.
            ConfigurationError: the address or the password is wrong. The message suggests a fix.
        """
        return (await self._topology.find(self._timeout)).connection

    def invalidate(self) -> None:
        """Discard the known location; the next `connect` locates the server again."""
        self._topology.invalidate()

    def redirect(self, endpoint: Endpoint) -> None:
        """Record that another node holds the namespace (see `errors.parse_redirect`)."""
        self._topology.redirect(endpoint)


class Topology(Protocol):
    """A way to locate the server that takes writes."""

    async def find(self, timeout: float) -> ServerConnection:
        """Return a connection to the server that takes writes."""
        ...

    def invalidate(self) -> None:
        """Discard the known location."""

    def redirect(self, endpoint: Endpoint) -> None:
        """Record a new location, if servers of this kind can move."""


# --- single server --------------------------------------------------------------------------------


class SingleTopology:
    """The server that the URL names."""

    __slots__ = ("_endpoint", "_settings")

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._endpoint: EndpointOrSocket = settings.socket_path or settings.endpoints[0]

    async def find(self, timeout: float) -> ServerConnection:
        """Connect, and check that the server is a primary."""
        connection = await connect(
            self._endpoint, self._settings, timeout=timeout, db=self._settings.db
        )
        if connection.role == "sentinel":
            await connection.close()
            raise ConfigurationError(
                f"{self._settings.describe()}: {self._endpoint} is a Sentinel; use "
                f"redis+sentinel://{self._endpoint}/SERVICE"
            )
        return await _require_primary(connection, self._endpoint, self._settings)

    def invalidate(self) -> None:
        """Do nothing: the location comes from the URL."""

    def redirect(self, endpoint: Endpoint) -> None:
        """Do nothing: a single server cannot move."""


async def _require_primary(
    connection: ServerConnection, endpoint: EndpointOrSocket, settings: RedisSettings
) -> ServerConnection:
    """Return the connection if its server is a primary. If the user may not read the role, the
    server counts as a primary until it rejects a write.
    """
    if connection.role in {"primary", "unknown"}:
        return connection
    await connection.close()
    kind = f"a replica of {connection.primary}" if connection.role == "replica" else "a Sentinel"
    advice = (
        "; name the primary, or use redis+sentinel://" if settings.kind in _SINGLE_KINDS else ""
    )
    raise BackendUnavailable(
        f"{settings.describe()}: {endpoint} is {kind} and takes no writes{advice}",
        outcome="not applied",
    )


_SINGLE_KINDS = frozenset({"single", "unix"})


# --- several servers, one after the other ---------------------------------------------------------


ConnectAttempt = Callable[[], Awaitable[ServerConnection]]


async def _connect_first(
    attempts: Iterable[ConnectAttempt], timeout: float
) -> ServerConnection | list[BackendUnavailable]:
    """Return the connection of the first attempt that succeeds, else all errors."""
    problems: list[BackendUnavailable] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            for attempt in attempts:
                try:
                    return await attempt()
                except BackendUnavailable as error:
                    problems.append(error)
    return problems or [BackendUnavailable(f"no answer within {timeout:g} s")]


def _make_no_primary_error(
    settings: RedisSettings, problems: Sequence[BackendUnavailable]
) -> BackendUnavailable:
    where = settings.describe()
    reasons = dict.fromkeys(str(problem).removeprefix(f"{where}: ") for problem in problems)
    shown = "; ".join(list(reasons)[:_MAX_REASONS])
    return BackendUnavailable(f"{where}: no server takes writes: {shown}", outcome="not applied")


async def _ask_server(
    connection: ServerConnection,
    endpoint: Endpoint,
    settings: RedisSettings,
    timeout: float,
    *command: str,
) -> Any:  # noqa: ANN401 (what the server says)
    """Send a query that helps to locate the server, and return the reply."""
    try:
        async with asyncio.timeout(timeout):
            return await connection.execute(*command)
    except DRIVER_ERRORS as error:
        raise map_connect_error(error, endpoint, settings, timeout) from error


# --- Sentinel -------------------------------------------------------------------------------------


class SentinelTopology:
    """The primary that the Sentinels report. The Sentinel that answered last is queried first."""

    __slots__ = ("_primary", "_sentinels", "_settings")

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._sentinels = list(settings.endpoints)
        self._primary: Endpoint | None = None

    async def find(self, timeout: float) -> ServerConnection:
        """Connect to the last known primary, else query one Sentinel after the other."""
        share = timeout / (len(self._sentinels) + 1)
        known, self._primary = self._primary, None
        attempts: list[ConnectAttempt] = (
            [partial(self._connect_primary, known, share)] if known else []
        )
        attempts += [
            partial(self._connect_through, sentinel, share) for sentinel in self._sentinels
        ]
        found = await _connect_first(attempts, timeout)
        if isinstance(found, ServerConnection):
            return found
        if all(isinstance(problem, _NoSuchService) for problem in found):
            raise ConfigurationError(str(found[0]))
        raise _make_no_primary_error(self._settings, found)

    def invalidate(self) -> None:
        """Discard the known primary; the next `find` queries the Sentinels."""
        self._primary = None

    def redirect(self, endpoint: Endpoint) -> None:
        """Do nothing: only Sentinels report the primary."""

    async def _connect_primary(self, node: Endpoint, timeout: float) -> ServerConnection:
        """Connect to a server, and check that it is the primary."""
        connection = await connect(node, self._settings, timeout=timeout, db=self._settings.db)
        connection = await _require_primary(connection, node, self._settings)
        self._primary = node
        return connection

    async def _connect_through(self, sentinel: Endpoint, timeout: float) -> ServerConnection:
        primary = await self._find_primary(sentinel, timeout)
        connection = await self._connect_primary(primary, timeout)
        self._sentinels.remove(sentinel)
        self._sentinels.insert(0, sentinel)
        return connection

    async def _find_primary(self, sentinel: Endpoint, timeout: float) -> Endpoint:
        login = self._settings.sentinel_credentials
        connection = await connect(sentinel, self._settings, timeout=timeout, credentials=login)
        try:
            self._check_is_sentinel(connection, sentinel)
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._settings.service)
            reply = await _ask_server(connection, sentinel, self._settings, timeout, *question)
            if reply is None:
                known = await _ask_server(
                    connection, sentinel, self._settings, timeout, "SENTINEL", "MASTERS"
                )
                raise _NoSuchService(self._explain_unknown_service(sentinel, known))
            return Endpoint(reply[0].decode(), int(reply[1]))
        finally:
            await connection.close()

    def _check_is_sentinel(self, connection: ServerConnection, endpoint: Endpoint) -> None:
        if connection.role in {"primary", "replica"}:
            where = self._settings.describe()
            raise ConfigurationError(
                f"{where}: {endpoint} is no Sentinel but a server; use redis://"
            )

    def _explain_unknown_service(self, sentinel: Endpoint, services: list[list[bytes]]) -> str:
        names = ", ".join(sorted(fields[1].decode() for fields in services)) or "none"
        where, service = self._settings.describe(), self._settings.service
        return f"{where}: Sentinel {sentinel} knows no service {service!r}; it knows: {names}"


class _NoSuchService(BackendUnavailable):
    """A Sentinel that does not know the service, perhaps not yet."""


# --- Cluster --------------------------------------------------------------------------------------


class ClusterTopology:
    """The node that owns the slot of the namespace. Known nodes are queried first, those of the URL
    last.
    """

    __slots__ = ("_nodes", "_owner", "_settings", "_slot")

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._slot: int = key_slot(settings.namespace.encode())
        self._nodes: list[Endpoint] = []
        self._owner: Endpoint | None = None

    async def find(self, timeout: float) -> ServerConnection:
        """Connect to the last known owner, else query one node after the other."""
        endpoints = list(dict.fromkeys([*self._nodes[:_MAX_ASKED], *self._settings.endpoints]))
        share = timeout / (len(endpoints) + 1)
        known, self._owner = self._owner, None
        attempts: list[ConnectAttempt] = (
            [partial(self._connect_owner, known, share)] if known else []
        )
        attempts += [partial(self._connect_through, node, share) for node in endpoints]
        found = await _connect_first(attempts, timeout)
        if isinstance(found, ServerConnection):
            return found
        raise _make_no_primary_error(self._settings, found)

    def invalidate(self) -> None:
        """Discard the known owner. The next `find` queries it after all other known nodes."""
        if self._owner in self._nodes:
            self._nodes.remove(self._owner)
            self._nodes.append(self._owner)
        self._owner = None

    def redirect(self, endpoint: Endpoint) -> None:
        """Record the owner for the next `find`. An empty host means the node that replied."""
        host = endpoint.host or (self._owner.host if self._owner else "")
        self._owner = Endpoint(host, endpoint.port) if host else None

    async def _connect_owner(self, node: Endpoint, timeout: float) -> ServerConnection:
        connection = await connect(node, self._settings, timeout=timeout)
        connection = await _require_primary(connection, node, self._settings)
        self._owner = node
        return connection

    async def _connect_through(self, node: Endpoint, timeout: float) -> ServerConnection:
        return await self._connect_owner(await self._find_owner(node, timeout), timeout)

    async def _find_owner(self, node: Endpoint, timeout: float) -> Endpoint:
        """Return the owner of the slot according to this node."""
        connection = await connect(node, self._settings, timeout=timeout)
        try:
            ranges = await _ask_server(
                connection, node, self._settings, timeout, "CLUSTER", "SLOTS"
            )
        finally:
            await connection.close()
        owners = [
            _decode_endpoint(slots[2], node)
            for slots in ranges
            if slots[0] <= self._slot <= slots[1]
        ]
        if not owners:
            problem = f"{node} names no node for slot {self._slot}, which holds the namespace"
            raise BackendUnavailable(problem, outcome="not applied")
        everyone = [_decode_endpoint(replica, node) for slots in ranges for replica in slots[2:]]
        self._nodes = list(dict.fromkeys([*owners, *everyone]))
        return owners[0]


def _decode_endpoint(fields: Sequence[Any], source: Endpoint) -> Endpoint:
    """Decode the address of a node from another node's reply. Without a host, the host of `source`
    applies.
    """
    host = fields[0].decode() if fields[0] else ""
    return Endpoint(host if host not in {"", "?"} else source.host, int(fields[1]))


_TOPOLOGIES: Mapping[ServerKind, Callable[[RedisSettings], Topology]] = MappingProxyType(
    {
        "single": SingleTopology,
        "unix": SingleTopology,
        "sentinel": SentinelTopology,
        "cluster": ClusterTopology,
    }
)
