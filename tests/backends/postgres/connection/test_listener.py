"""The listener of notifications, without a server."""

from __future__ import annotations

import asyncio
from typing import cast

from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.postgres.listener import PostgresListener
from nimburion.core.notification_relay import NotificationReceiver
from tests.waiting import DEADLINE

RECEIVER = cast("NotificationReceiver", object())


class BrokenConnection:
    """Raises an error that no server sends; the second time it does not answer."""

    def __init__(self) -> None:
        self.is_tried_again = asyncio.Event()
        self._tries = 0

    async def connect(self) -> None:
        self._tries += 1
        if self._tries == 1:
            raise KeyError("unexpected")
        self.is_tried_again.set()
        await asyncio.Event().wait()


async def test_an_unexpected_error_does_not_end_the_listener() -> None:
    connection = BrokenConnection()
    listener = PostgresListener(cast("PostgresConnection", connection), RECEIVER)
    listener.listen(["jobs"])
    async with asyncio.timeout(DEADLINE):
        assert await connection.is_tried_again.wait()
    await listener.close()
