"""The operations of a store that need not be open: they make what an open one finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nimburion.backends.postgres import migrating
from nimburion.backends.postgres.address import Address
from nimburion.backends.postgres.connecting import Link


class Upgrading:
    """Each on a connection of its own."""

    address: Address

    async def plan(self) -> list[str]:
        """See `Backend.plan`."""
        async with self._linked() as link:
            found = await migrating.standing(link, self.address)
            return migrating.plan(found, self.address, migrating.wanted())

    async def migrate(self) -> list[str]:
        """See `Backend.migrate`."""
        async with self._linked() as link:
            return await migrating.migrate(link, self.address, migrating.wanted())

    async def grant(self, role: str) -> list[str]:
        """See `Backend.grant`."""
        async with self._linked() as link:
            return await migrating.grant(link, self.address, migrating.wanted(), role)

    @asynccontextmanager
    async def _linked(self) -> AsyncIterator[Link]:
        link = Link(self.address, asyncio.sleep)
        try:
            await link.connect()
            yield link
        finally:
            await link.close()
