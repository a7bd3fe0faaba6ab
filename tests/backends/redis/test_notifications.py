"""The notifications of a handle, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.notifications import IdleEntries, RedisNotifications
from nimburion.backends.redis.url import parse_url
from tests.waiting import DEADLINE


async def add_nothing(queues: Collection[str]) -> None:
    """Write no idle entries."""


def make_notifications() -> RedisNotifications:
    """Those of a handle whose server does not exist."""
    return RedisNotifications(
        ServerLocator(parse_url("redis://127.0.0.1:1/0")),
        ("channel", "own"),
        IdleEntries("0" * 16),
        add_entries=add_nothing,
        pass_on=lambda queue, passed: None,
    )


@pytest.mark.parametrize("turns", range(6))
async def test_a_wait_that_is_cancelled_while_the_connection_opens_ends(turns: int) -> None:
    """Whatever turn of the event loop the cancellation comes in: the loop may be closing."""
    notifications = make_notifications()
    notifications._has_subscribed = True
    waiting = asyncio.create_task(notifications.wait_for_session("s"))
    for _ in range(3):
        await asyncio.sleep(0)
    notifications._is_connected.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait({waiting}, timeout=DEADLINE)
    assert done
    assert waiting.cancelled()
    await notifications.close()


async def test_a_wait_without_a_connection_lasts_no_longer_than_its_timeout() -> None:
    """The time in which the connection does not open is a part of it."""
    notifications = make_notifications()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    await notifications.wait(["q"], 0.05, sleep)
    await notifications.close()
    assert len(slept) == 1
    assert slept[0] < 0.05
