"""Opening a namespace: look at the server, pick the scripts it understands, check the format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.redis import durability
from nimburion.backends.redis.address import Address
from nimburion.backends.redis.keys import Keys
from nimburion.backends.redis.line import Line, Part
from nimburion.backends.redis.parking import Command, Parking
from nimburion.backends.redis.ringing import Arm, Bell
from nimburion.backends.redis.scripts import Script, Scripts
from nimburion.backends.redis.servers import Servers
from nimburion.backends.redis.vetting import Server, vet
from nimburion.core.errors import FormatMismatch

FORMAT = 1
"""What this version writes. Workers of one format run together."""


class Opened:
    """A store that is open on one event loop: its connections, and what its server is."""

    def __init__(self, address: Address, arm: Arm, warned: set[str]) -> None:
        self.address: Address = address
        self.servers: Servers = Servers(address, timeout=address.timeout)
        where = address.describe()
        self.asks: Line = Line(self.servers, where, address.timeout)
        """For all that is neither enqueued nor exchanged."""
        self.enqueues: Line = Line(self.servers, where, address.timeout)
        self.exchanges: Line = Line(self.servers, where, address.timeout)
        keys = Keys(address.namespace)
        self.bell: Bell = Bell(self.servers, keys.channel, arm)
        self.parking: Parking = Parking(keys.rings, self.exchanges, self.asks)
        self.server: Server
        self._keys = keys
        self._warned = warned
        self._scripts: dict[str, tuple[Script, tuple[bytes, ...]]] = {}

    async def start(self) -> None:
        """Look at the server and at the namespace.

        Raises:
            ConfigurationError: the server will not do.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: no answer.
        """
        self.server = await vet(self.asks.call, self.address, self._warned)
        self._scripts = {
            script.name: (script, self._keys.of(script.keys))
            for script in Scripts(self.server.version)
        }
        (found,) = await self.run(self.asks, "open", [b"%d" % FORMAT])
        _check_format(found, self.address)
        for line in (self.asks, self.enqueues, self.exchanges):
            line.proven = True

    async def plan(self) -> list[str]:
        """What `start` would do to the namespace, in words. Writes nothing.

        Raises:
            ConfigurationError: the server will not do.
            FormatMismatch: the namespace was written by another version.
            BackendUnavailable: no answer.
        """
        await vet(self.asks.call, self.address, self._warned)
        (meta,) = self._keys.of(["meta"])
        found = await self.asks.call("HGET", meta, "format")
        if found is None:
            return [f"format {FORMAT}: namespace {self.address.namespace!r}"]
        _check_format(int(found), self.address)
        return []

    async def run(
        self,
        line: Line,
        name: str,
        arguments: Sequence[Part],
        times: tuple[Part, Part] = (b"", b""),
        *,
        more_keys: Sequence[bytes] = (),
        ahead: Sequence[Command] = (),
        then: Sequence[Command] = (),
        patience: float = 0.0,
    ) -> list[Any]:
        """Run a script: its reply, between those of the commands ahead of it and behind it."""
        script, keys = self._scripts[name]
        return await line.run(
            script,
            [*keys, *more_keys],
            [*times, *arguments],
            ahead=ahead,
            then=then,
            patience=patience,
        )

    def flush(self, address: Address) -> list[durability.Command]:
        """The commands behind a write that wait until it is on the disk."""
        return durability.flush_by(*self._scripts["flush"], address)

    async def close(self) -> None:
        """Hang up."""
        await self.bell.close()
        await self.parking.close()
        for line in (self.exchanges, self.enqueues, self.asks):
            await line.close()


def _check_format(found: int, address: Address) -> None:
    """Raise `FormatMismatch` for a format newer than ours."""
    if found > FORMAT:
        raise FormatMismatch(
            f"{address.describe()} has format {found}, this nimburion knows formats up to "
            f"{FORMAT}; nothing was changed. Upgrade nimburion here (pip install --upgrade "
            "nimburion)"
        )
