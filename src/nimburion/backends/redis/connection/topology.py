"""The server that takes writes: one that is named, Sentinel's primary, a node of a cluster.

Three ways to find it, behind one door. What was found is believed until somebody doubts it.
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
"""Nodes asked in one search beside those that the URL names; a large cluster has hundreds."""


class ServerLocator:
    """The way to the server that takes a backend's writes.

    Args:
        address: what its URL says.
        timeout: seconds for one `connect`, whatever has to be asked on the way; None: as the
            address says.
    """

    __slots__ = ("_settings", "_timeout", "_topology")

    def __init__(self, settings: RedisSettings, *, timeout: float | None = None) -> None:
        self._settings = settings
        self._timeout = settings.timeout if timeout is None else timeout
        self._topology = _TOPOLOGIES[settings.kind](settings)

    async def connect(self) -> AbstractConnection:
        """A connection that is open and logged in, its db chosen, to the server that takes writes.

        It has no time limit of its own and tries nothing twice.

        Raises:
            BackendUnavailable: nobody answers, or nobody takes writes just now; `not applied`.
            ConfigurationError: the address or its password is wrong; the message says what to do.
        """
        return (await self._topology.find(self._timeout)).connection

    def invalidate(self) -> None:
        """Believe no more where the server is: the next `connect` looks again."""
        self._topology.invalidate()

    def redirect(self, endpoint: Endpoint) -> None:
        """A node said that the namespace lies on that one (`faults.parse_redirect`)."""
        self._topology.redirect(endpoint)


class Topology(Protocol):
    """One way to find it."""

    async def find(self, timeout: float) -> ServerConnection:
        """A connection to the server that takes writes."""
        ...

    def invalidate(self) -> None:
        """Believe no more what was found."""

    def redirect(self, endpoint: Endpoint) -> None:
        """Believe this, where servers can move."""


# --- one server -----------------------------------------------------------------------------------


class SingleTopology:
    """The server that the URL names."""

    __slots__ = ("_endpoint", "_settings")

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._endpoint: EndpointOrSocket = settings.socket_path or settings.endpoints[0]

    async def find(self, timeout: float) -> ServerConnection:
        """Connect, and see that it is a primary."""
        call = await connect(self._endpoint, self._settings, timeout=timeout, db=self._settings.db)
        if call.role == "sentinel":
            await call.close()
            raise ConfigurationError(
                f"{self._settings.describe()}: {self._endpoint} is a Sentinel; use "
                f"redis+sentinel://{self._endpoint}/SERVICE"
            )
        return await _require_primary(call, self._endpoint, self._settings)

    def invalidate(self) -> None:
        """Nothing was found out."""

    def redirect(self, endpoint: Endpoint) -> None:
        """It cannot move."""


async def _require_primary(
    connection: ServerConnection, endpoint: EndpointOrSocket, settings: RedisSettings
) -> ServerConnection:
    """The call, if its server is a primary; one that may not tell is believed until it refuses."""
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


# --- several, one after the other -----------------------------------------------------------------


ConnectAttempt = Callable[[], Awaitable[ServerConnection]]


async def _connect_first(
    attempts: Iterable[ConnectAttempt], timeout: float
) -> ServerConnection | list[BackendUnavailable]:
    """What the first way that works leads to, else why none did."""
    problems: list[BackendUnavailable] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            for way in attempts:
                try:
                    return await way()
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
    """The reply to a question that leads on."""
    try:
        async with asyncio.timeout(timeout):
            return await connection.execute(*command)
    except DRIVER_ERRORS as error:
        raise map_connect_error(error, endpoint, settings, timeout) from error


# --- Sentinel -------------------------------------------------------------------------------------


class SentinelTopology:
    """The primary that the Sentinels agree on. The one that answered last is asked first."""

    __slots__ = ("_primary", "_sentinels", "_settings")

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._sentinels = list(settings.endpoints)
        self._primary: Endpoint | None = None

    async def find(self, timeout: float) -> ServerConnection:
        """Connect to the primary found last, else ask one Sentinel after the other."""
        share = timeout / (len(self._sentinels) + 1)
        known, self._primary = self._primary, None
        ways: list[ConnectAttempt] = [partial(self._connect_primary, known, share)] if known else []
        ways += [partial(self._connect_through, sentinel, share) for sentinel in self._sentinels]
        found = await _connect_first(ways, timeout)
        if isinstance(found, ServerConnection):
            return found
        if all(isinstance(problem, _NoSuchService) for problem in found):
            raise ConfigurationError(str(found[0]))
        raise _make_no_primary_error(self._settings, found)

    def invalidate(self) -> None:
        """Ask the Sentinels next time."""
        self._primary = None

    def redirect(self, endpoint: Endpoint) -> None:
        """Only Sentinels say who is primary."""

    async def _connect_primary(self, node: Endpoint, timeout: float) -> ServerConnection:
        """Connect to a server that must be the primary, whoever said so."""
        call = await connect(node, self._settings, timeout=timeout, db=self._settings.db)
        call = await _require_primary(call, node, self._settings)
        self._primary = node
        return call

    async def _connect_through(self, sentinel: Endpoint, timeout: float) -> ServerConnection:
        primary = await self._find_primary(sentinel, timeout)
        call = await self._connect_primary(primary, timeout)
        self._sentinels.remove(sentinel)
        self._sentinels.insert(0, sentinel)
        return call

    async def _find_primary(self, sentinel: Endpoint, timeout: float) -> Endpoint:
        login = self._settings.sentinel_credentials
        call = await connect(sentinel, self._settings, timeout=timeout, credentials=login)
        try:
            self._check_is_sentinel(call, sentinel)
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._settings.service)
            answer = await _ask_server(call, sentinel, self._settings, timeout, *question)
            if answer is None:
                known = await _ask_server(
                    call, sentinel, self._settings, timeout, "SENTINEL", "MASTERS"
                )
                raise _NoSuchService(self._explain_unknown_service(sentinel, known))
            return Endpoint(answer[0].decode(), int(answer[1]))
        finally:
            await call.close()

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
    """One Sentinel that was never told of the service, or not yet."""


# --- Cluster --------------------------------------------------------------------------------------


class ClusterTopology:
    """The node that owns the slot of the namespace. Every node met is asked, the seeds last."""

    __slots__ = ("_nodes", "_owner", "_settings", "_slot")

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._slot: int = key_slot(settings.namespace.encode())
        self._nodes: list[Endpoint] = []
        self._owner: Endpoint | None = None

    async def find(self, timeout: float) -> ServerConnection:
        """Connect to the owner found last, else ask one node after the other."""
        asked = list(dict.fromkeys([*self._nodes[:_MAX_ASKED], *self._settings.endpoints]))
        share = timeout / (len(asked) + 1)
        known, self._owner = self._owner, None
        ways: list[ConnectAttempt] = [partial(self._connect_owner, known, share)] if known else []
        ways += [partial(self._connect_through, node, share) for node in asked]
        found = await _connect_first(ways, timeout)
        if isinstance(found, ServerConnection):
            return found
        raise _make_no_primary_error(self._settings, found)

    def invalidate(self) -> None:
        """Ask the nodes next time, and the one that is doubted last."""
        if self._owner in self._nodes:
            self._nodes.remove(self._owner)
            self._nodes.append(self._owner)
        self._owner = None

    def redirect(self, endpoint: Endpoint) -> None:
        """Go there next time. Without a host the node means its own."""
        host = endpoint.host or (self._owner.host if self._owner else "")
        self._owner = Endpoint(host, endpoint.port) if host else None

    async def _connect_owner(self, node: Endpoint, timeout: float) -> ServerConnection:
        call = await connect(node, self._settings, timeout=timeout)
        call = await _require_primary(call, node, self._settings)
        self._owner = node
        return call

    async def _connect_through(self, node: Endpoint, timeout: float) -> ServerConnection:
        return await self._connect_owner(await self._find_owner(node, timeout), timeout)

    async def _find_owner(self, node: Endpoint, timeout: float) -> Endpoint:
        """Whom this node says the slot belongs to."""
        call = await connect(node, self._settings, timeout=timeout)
        try:
            ranges = await _ask_server(call, node, self._settings, timeout, "CLUSTER", "SLOTS")
        finally:
            await call.close()
        owners = [
            _decode_endpoint(one[2], node) for one in ranges if one[0] <= self._slot <= one[1]
        ]
        if not owners:
            problem = f"{node} knows nobody who has slot {self._slot}, where the namespace lies"
            raise BackendUnavailable(problem, outcome="not applied")
        everyone = [_decode_endpoint(one, node) for slots in ranges for one in slots[2:]]
        self._nodes = list(dict.fromkeys([*owners, *everyone]))
        return owners[0]


def _decode_endpoint(fields: Sequence[Any], source: Endpoint) -> Endpoint:
    """A node as another one tells of it: without a host where it does not know its own."""
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
