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

from nimburion.backends.redis.connection.connect import Call, Place, dial, why_not
from nimburion.backends.redis.errors import FAULTS
from nimburion.backends.redis.url import Address, Kind
from nimburion.backends.server.url import Node
from nimburion.core.errors import BackendUnavailable, ConfigurationError

_MOST_REASONS = 3
_MOST_ASKED = 4
"""Nodes asked in one search beside those that the URL names; a large cluster has hundreds."""


class Servers:
    """The way to the server that takes a store's writes.

    Args:
        address: what its URL says.
        timeout: seconds for one `connect`, whatever has to be asked on the way; None: as the
            address says.
    """

    __slots__ = ("_address", "_search", "_timeout")

    def __init__(self, address: Address, *, timeout: float | None = None) -> None:
        self._address = address
        self._timeout = address.timeout if timeout is None else timeout
        self._search = _SEARCHES[address.kind](address)

    async def connect(self) -> AbstractConnection:
        """A connection that is open and logged in, its db chosen, to the server that takes writes.

        It has no time limit of its own and tries nothing twice.

        Raises:
            BackendUnavailable: nobody answers, or nobody takes writes just now; `not applied`.
            ConfigurationError: the address or its password is wrong; the message says what to do.
        """
        return (await self._search.find(self._timeout)).connection

    def doubt(self) -> None:
        """Believe no more where the server is: the next `connect` looks again."""
        self._search.doubt()

    def moved(self, node: Node) -> None:
        """A node said that the namespace lies on that one (`faults.redirect_of`)."""
        self._search.moved(node)


class Search(Protocol):
    """One way to find it."""

    async def find(self, within: float) -> Call:
        """A connection to the server that takes writes."""
        ...

    def doubt(self) -> None:
        """Believe no more what was found."""

    def moved(self, node: Node) -> None:
        """Believe this, where servers can move."""


# --- one server -----------------------------------------------------------------------------------


class Single:
    """The server that the URL names."""

    __slots__ = ("_address", "_place")

    def __init__(self, address: Address) -> None:
        self._address = address
        self._place: Place = address.path or address.nodes[0]

    async def find(self, within: float) -> Call:
        """Connect, and see that it is a primary."""
        call = await dial(self._place, self._address, within=within, db=self._address.db)
        if call.role == "sentinel":
            await call.close()
            raise ConfigurationError(
                f"{self._address.describe()}: {self._place} is a Sentinel; use "
                f"redis+sentinel://{self._place}/SERVICE"
            )
        return await _taking_writes(call, self._place, self._address)

    def doubt(self) -> None:
        """Nothing was found out."""

    def moved(self, node: Node) -> None:
        """It cannot move."""


async def _taking_writes(call: Call, place: Place, address: Address) -> Call:
    """The call, if its server is a primary; one that may not tell is believed until it refuses."""
    if call.role in {"primary", "unknown"}:
        return call
    await call.close()
    kind = f"a replica of {call.follows}" if call.role == "replica" else "a Sentinel"
    advice = "; name the primary, or use redis+sentinel://" if address.kind in _NAMED else ""
    raise BackendUnavailable(
        f"{address.describe()}: {place} is {kind} and takes no writes{advice}",
        outcome="not applied",
    )


_NAMED = frozenset({"single", "unix"})


# --- several, one after the other -----------------------------------------------------------------


Way = Callable[[], Awaitable[Call]]


async def _first(ways: Iterable[Way], within: float) -> Call | list[BackendUnavailable]:
    """What the first way that works leads to, else why none did."""
    problems: list[BackendUnavailable] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            for way in ways:
                try:
                    return await way()
                except BackendUnavailable as error:
                    problems.append(error)
    return problems or [BackendUnavailable(f"no answer within {within:g} s")]


def _nobody(address: Address, problems: Sequence[BackendUnavailable]) -> BackendUnavailable:
    where = address.describe()
    reasons = dict.fromkeys(str(problem).removeprefix(f"{where}: ") for problem in problems)
    shown = "; ".join(list(reasons)[:_MOST_REASONS])
    return BackendUnavailable(f"{where}: no server takes writes: {shown}", outcome="not applied")


async def _asked(call: Call, place: Node, address: Address, within: float, *command: str) -> Any:  # noqa: ANN401 (what the server says)
    """The reply to a question that leads on."""
    try:
        async with asyncio.timeout(within):
            return await call.ask(*command)
    except FAULTS as error:
        raise why_not(error, place, address, within) from error


# --- Sentinel -------------------------------------------------------------------------------------


class Sentinel:
    """The primary that the Sentinels agree on. The one that answered last is asked first."""

    __slots__ = ("_address", "_primary", "_sentinels")

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sentinels = list(address.nodes)
        self._primary: Node | None = None

    async def find(self, within: float) -> Call:
        """Connect to the primary found last, else ask one Sentinel after the other."""
        share = within / (len(self._sentinels) + 1)
        known, self._primary = self._primary, None
        ways: list[Way] = [partial(self._at, known, share)] if known else []
        ways += [partial(self._through, sentinel, share) for sentinel in self._sentinels]
        found = await _first(ways, within)
        if isinstance(found, Call):
            return found
        if all(isinstance(problem, _NoSuchService) for problem in found):
            raise ConfigurationError(str(found[0]))
        raise _nobody(self._address, found)

    def doubt(self) -> None:
        """Ask the Sentinels next time."""
        self._primary = None

    def moved(self, node: Node) -> None:
        """Only Sentinels say who is primary."""

    async def _at(self, node: Node, within: float) -> Call:
        """Connect to a server that must be the primary, whoever said so."""
        call = await dial(node, self._address, within=within, db=self._address.db)
        call = await _taking_writes(call, node, self._address)
        self._primary = node
        return call

    async def _through(self, sentinel: Node, within: float) -> Call:
        primary = await self._primary_of(sentinel, within)
        call = await self._at(primary, within)
        self._sentinels.remove(sentinel)
        self._sentinels.insert(0, sentinel)
        return call

    async def _primary_of(self, sentinel: Node, within: float) -> Node:
        login = self._address.sentinel_login
        call = await dial(sentinel, self._address, within=within, login=login)
        try:
            self._check_is_sentinel(call, sentinel)
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
            answer = await _asked(call, sentinel, self._address, within, *question)
            if answer is None:
                known = await _asked(call, sentinel, self._address, within, "SENTINEL", "MASTERS")
                raise _NoSuchService(self._unknown(sentinel, known))
            return Node(answer[0].decode(), int(answer[1]))
        finally:
            await call.close()

    def _check_is_sentinel(self, call: Call, place: Node) -> None:
        if call.role in {"primary", "replica"}:
            where = self._address.describe()
            raise ConfigurationError(f"{where}: {place} is no Sentinel but a server; use redis://")

    def _unknown(self, sentinel: Node, services: list[list[bytes]]) -> str:
        names = ", ".join(sorted(fields[1].decode() for fields in services)) or "none"
        where, service = self._address.describe(), self._address.service
        return f"{where}: Sentinel {sentinel} knows no service {service!r}; it knows: {names}"


class _NoSuchService(BackendUnavailable):
    """One Sentinel that was never told of the service, or not yet."""


# --- Cluster --------------------------------------------------------------------------------------


class Cluster:
    """The node that owns the slot of the namespace. Every node met is asked, the seeds last."""

    __slots__ = ("_address", "_nodes", "_owner", "_slot")

    def __init__(self, address: Address) -> None:
        self._address = address
        self._slot: int = key_slot(address.namespace.encode())
        self._nodes: list[Node] = []
        self._owner: Node | None = None

    async def find(self, within: float) -> Call:
        """Connect to the owner found last, else ask one node after the other."""
        asked = list(dict.fromkeys([*self._nodes[:_MOST_ASKED], *self._address.nodes]))
        share = within / (len(asked) + 1)
        known, self._owner = self._owner, None
        ways: list[Way] = [partial(self._at, known, share)] if known else []
        ways += [partial(self._through, node, share) for node in asked]
        found = await _first(ways, within)
        if isinstance(found, Call):
            return found
        raise _nobody(self._address, found)

    def doubt(self) -> None:
        """Ask the nodes next time, and the one that is doubted last."""
        if self._owner in self._nodes:
            self._nodes.remove(self._owner)
            self._nodes.append(self._owner)
        self._owner = None

    def moved(self, node: Node) -> None:
        """Go there next time. Without a host the node means its own."""
        host = node.host or (self._owner.host if self._owner else "")
        self._owner = Node(host, node.port) if host else None

    async def _at(self, node: Node, within: float) -> Call:
        call = await dial(node, self._address, within=within)
        call = await _taking_writes(call, node, self._address)
        self._owner = node
        return call

    async def _through(self, node: Node, within: float) -> Call:
        return await self._at(await self._owner_by(node, within), within)

    async def _owner_by(self, node: Node, within: float) -> Node:
        """Whom this node says the slot belongs to."""
        call = await dial(node, self._address, within=within)
        try:
            ranges = await _asked(call, node, self._address, within, "CLUSTER", "SLOTS")
        finally:
            await call.close()
        owners = [_node(one[2], node) for one in ranges if one[0] <= self._slot <= one[1]]
        if not owners:
            problem = f"{node} knows nobody who has slot {self._slot}, where the namespace lies"
            raise BackendUnavailable(problem, outcome="not applied")
        everyone = [_node(one, node) for slots in ranges for one in slots[2:]]
        self._nodes = list(dict.fromkeys([*owners, *everyone]))
        return owners[0]


def _node(told: Sequence[Any], teller: Node) -> Node:
    """A node as another one tells of it: without a host where it does not know its own."""
    host = told[0].decode() if told[0] else ""
    return Node(host if host not in {"", "?"} else teller.host, int(told[1]))


_SEARCHES: Mapping[Kind, Callable[[Address], Search]] = MappingProxyType(
    {"single": Single, "unix": Single, "sentinel": Sentinel, "cluster": Cluster}
)
