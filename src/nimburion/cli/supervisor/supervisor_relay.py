"""How the backend of a worker process receives notifications through the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from nimburion.cli.supervisor.messages import (
    ChannelsServed,
    ChannelsWanted,
    ListenerState,
    ListenRequest,
    Notification,
)
from nimburion.cli.supervisor.supervisor_channel import SupervisorChannel
from nimburion.core.notification_relay import (
    ChannelListener,
    NotificationReceiver,
    NotificationRelay,
)


class SupervisorRelay(NotificationRelay, NotificationReceiver):
    """Passes notifications between the backend of this process and the supervisor.

    If the supervisor asks for it, this process listens for all. Then the relay is the receiver of
    the listener: it passes on what the backend of this process wants, and sends the supervisor what
    other processes want.
    """

    def __init__(self, channel: SupervisorChannel) -> None:
        self._channel = channel
        self._receiver: NotificationReceiver | None = None
        self._make_listener: Callable[[NotificationReceiver], ChannelListener] | None = None
        self._wanted: frozenset[str] = frozenset()
        """The channels that the backend of this process wants."""
        self._wanted_by_others: frozenset[str] = frozenset()
        self._listener: ChannelListener | None = None
        self._is_listening = False
        """Whether the backend was told that its notifications arrive."""
        self._closing: set[asyncio.Task[None]] = set()

    # --- for the backend ---

    def subscribe(
        self,
        channels: Collection[str],
        receiver: NotificationReceiver,
        make_listener: Callable[[NotificationReceiver], ChannelListener],
    ) -> None:
        """Pass the notifications of these channels to `receiver`."""
        self._wanted, self._receiver = frozenset(channels), receiver
        self._make_listener = make_listener
        self._channel.send(ChannelsWanted(sorted(channels)))

    async def unsubscribe(self) -> None:
        """Pass on no more notifications, and stop listening for other processes."""
        self._receiver = self._make_listener = None
        self._is_listening = False
        self._channel.send(ChannelsWanted([]))
        self._close_listener()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- messages of the supervisor ---

    def handle(self, message: ListenRequest | ListenerState | Notification) -> None:
        """Handle a message of the supervisor."""
        match message:
            case Notification():
                if self._receiver is not None:
                    self._receiver.receive(message.channel, message.text)
            case ListenerState():
                self._note_state(is_listening=message.is_listening)
            case ListenRequest(channels=None):
                self._stop_listening()
            case ListenRequest(channels=[*channels]):
                self._listen(channels)

    def _listen(self, for_others: Collection[str]) -> None:
        if self._make_listener is None:  # the backend was closed in the meantime
            return
        self._wanted_by_others = frozenset(for_others)
        if self._listener is None:
            self._listener = self._make_listener(self)
        self._listener.listen(self._wanted | self._wanted_by_others)

    def _stop_listening(self) -> None:
        self._note_state(is_listening=False)
        self._close_listener()

    def _close_listener(self) -> None:
        """Close the listener in the background. A request that follows makes another one."""
        listener, self._listener = self._listener, None
        if listener is not None:
            closing = asyncio.get_running_loop().create_task(listener.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _note_state(self, *, is_listening: bool) -> None:
        """Tell the backend whether its notifications arrive, if that has changed."""
        if self._receiver is None or is_listening == self._is_listening:
            return
        self._is_listening = is_listening
        if is_listening:
            self._receiver.note_listening(self._wanted)
        else:
            self._receiver.note_lost()

    # --- the receiver of the listener ---

    def note_listening(self, channels: Collection[str]) -> None:
        """Note on which channels the listener of this process listens."""
        self._note_state(is_listening=True)
        self._channel.send(ChannelsServed(sorted(channels)))

    def note_lost(self) -> None:
        """Note that the listener of this process has lost its connection."""
        self._note_state(is_listening=False)
        self._channel.send(ChannelsServed([]))

    def receive(self, channel: str, text: str) -> None:
        """Pass a notification on. It is lost if the supervisor does not read; workers then poll."""
        if channel in self._wanted_by_others:
            self._channel.send_or_drop(Notification(channel, text))
        if channel in self._wanted and self._receiver is not None:
            self._receiver.receive(channel, text)
