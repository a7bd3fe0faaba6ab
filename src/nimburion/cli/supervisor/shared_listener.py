"""The listener of a worker process that shares one with the other processes of its supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from nimburion.cli.supervisor.messages import (
    ChannelsServed,
    ChannelsWanted,
    ListenerState,
    ListenRequest,
    Notification,
)
from nimburion.cli.supervisor.supervisor_channel import SupervisorChannel
from nimburion.core.listener import Listener, MakeListener, OnListening, OnNotification


class SharedListener(Listener):
    """Receives the notifications of its channels from the supervisor.

    If the supervisor asks for it, this process listens for all, with a listener of the backend.
    Then notifications on its own channels come from there, and those for others are sent to the
    supervisor.
    """

    def __init__(self, channel: SupervisorChannel) -> None:
        self._channel = channel
        self._make_listener: MakeListener | None = None
        """None: the backend does not listen."""
        self._on_listening: OnListening
        self._on_notification: OnNotification
        self._wanted: frozenset[str] = frozenset()
        """The channels that the backend of this process wants."""
        self._wanted_by_others: frozenset[str] = frozenset()
        self._listener: Listener | None = None
        """Listens for all; None: another process does."""
        self._is_listening = False
        """Whether the backend was told that its notifications arrive."""
        self._closing: set[asyncio.Task[None]] = set()

    # --- for the backend ---

    def attach(
        self,
        make_listener: MakeListener,
        on_listening: OnListening,
        on_notification: OnNotification,
    ) -> Listener:
        """Return this listener, for the backend that was opened last. See `ShareListener`."""
        self._make_listener = make_listener
        self._on_listening, self._on_notification = on_listening, on_notification
        return self

    def listen(self, channels: Collection[str]) -> None:
        """Receive the notifications of these channels from now on."""
        self._wanted = frozenset(channels)
        self._channel.send(ChannelsWanted(sorted(channels)))

    async def close(self) -> None:
        """Receive no more notifications, and stop listening for other processes."""
        self._make_listener = None
        self._wanted, self._is_listening = frozenset(), False
        self._channel.send(ChannelsWanted([]))
        self._close_listener()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- messages of the supervisor ---

    def handle(self, message: ListenRequest | ListenerState | Notification) -> None:
        """Handle a message of the supervisor."""
        if self._make_listener is None:  # the backend was closed in the meantime
            return
        match message:
            case Notification():
                self._on_notification(message.channel, message.text)
            case ListenerState():
                self._note_state(is_listening=message.is_listening)
            case ListenRequest(channels=None):
                self._note_state(is_listening=False)
                self._close_listener()
            case ListenRequest(channels=[*channels]):
                self._wanted_by_others = frozenset(channels)
                if self._listener is None:
                    self._listener = self._make_listener(self._note_channels, self._receive)
                self._listener.listen(self._wanted | self._wanted_by_others)

    def _close_listener(self) -> None:
        """Close the listener in the background. A request that follows makes another one."""
        listener, self._listener = self._listener, None
        if listener is not None:
            closing = asyncio.get_running_loop().create_task(listener.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _note_state(self, *, is_listening: bool) -> None:
        """Tell the backend whether its notifications arrive, if that has changed."""
        if self._make_listener is not None and is_listening != self._is_listening:
            self._is_listening = is_listening
            self._on_listening(self._wanted if is_listening else ())

    # --- while this process listens for all ---

    def _note_channels(self, channels: Collection[str]) -> None:
        self._note_state(is_listening=bool(channels))
        self._channel.send(ChannelsServed(sorted(channels)))

    def _receive(self, channel: str, text: str) -> None:
        """Pass a notification on. It is lost if the supervisor does not read; workers then poll."""
        if channel in self._wanted_by_others:
            self._channel.send_or_drop(Notification(channel, text))
        if channel in self._wanted:
            self._on_notification(channel, text)
