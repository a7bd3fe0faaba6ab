"""The relay of a worker process: it listens for others when the supervisor asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import cast

from nimburion.cli.supervisor.messages import ListenRequest
from nimburion.cli.supervisor.supervisor_channel import SupervisorChannel
from nimburion.cli.supervisor.supervisor_relay import SupervisorRelay
from nimburion.core.notification_relay import ChannelListener, NotificationReceiver

RECEIVER = cast("NotificationReceiver", object())


class FakeChannel:
    """Sends nothing."""

    def send(self, message: object) -> None: ...


class FakeListener(ChannelListener):
    def __init__(self) -> None:
        self.channels: Collection[str] = ()
        self.is_closed = False

    def listen(self, channels: Collection[str]) -> None:
        self.channels = channels

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.is_closed = True


async def test_a_request_right_after_the_end_of_another_makes_a_listener() -> None:
    """Both messages come in one batch if the event loop was blocked."""
    made: list[FakeListener] = []

    def make_listener(_: NotificationReceiver) -> FakeListener:
        made.append(FakeListener())
        return made[-1]

    relay = SupervisorRelay(cast("SupervisorChannel", FakeChannel()))
    relay.subscribe(["own"], RECEIVER, make_listener)
    relay.handle(ListenRequest(["other"]))
    relay.handle(ListenRequest(None))
    relay.handle(ListenRequest(["other"]))
    assert set(made[-1].channels) == {"own", "other"}
    for _ in range(5):
        await asyncio.sleep(0)
    assert [listener.is_closed for listener in made] == [True, False]
    await relay.unsubscribe()
    assert [listener.is_closed for listener in made] == [True, True]
