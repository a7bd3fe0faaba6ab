"""One listening connection for all worker processes of a supervisor.

A backend whose server charges for each listening connection subscribes through a relay. The relay
lets one process listen on the channels of all, and passes each notification to the processes that
subscribed to its channel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol


class NotificationReceiver(Protocol):
    """Receives the notifications of some channels. It is called on the event loop of its handle."""

    def note_listening(self, channels: Collection[str]) -> None:
        """Note that notifications of exactly these channels arrive from now on. Some may have been
        lost before.
        """
        ...

    def note_lost(self) -> None:
        """Note that no notification arrives until the next `note_listening`."""
        ...

    def receive(self, channel: str, text: str) -> None:
        """Handle one notification."""
        ...


class ChannelListener(Protocol):
    """Listens on channels of a server, on a connection of its own."""

    def listen(self, channels: Collection[str]) -> None:
        """Listen on these channels from now on, in place of those of the last call.

        Notifications of former channels may still arrive. Ignore them.
        """
        ...

    async def close(self) -> None:
        """Stop listening and disconnect."""
        ...


class NotificationRelay(Protocol):
    """Passes notifications between the processes of a supervisor."""

    def subscribe(
        self,
        channels: Collection[str],
        receiver: NotificationReceiver,
        make_listener: Callable[[NotificationReceiver], ChannelListener],
    ) -> None:
        """Pass the notifications of these channels to `receiver`.

        If this process is to listen for all, the relay makes a listener that reports to the relay.
        """
        ...

    async def unsubscribe(self) -> None:
        """Pass on no more notifications, and stop listening for other processes."""
        ...
