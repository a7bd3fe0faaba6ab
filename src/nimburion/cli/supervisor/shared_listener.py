"""The listener of a worker process that shares one with the other processes of its supervisor."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any

from nimburion.cli.supervisor.messages import (
    ChannelsServed,
    ChannelsWanted,
    ListenerState,
    ListenRequest,
    Notification,
)
from nimburion.cli.supervisor.supervisor_channel import SupervisorChannel
from nimburion.core.listener import Listener, MakeListener, OnListening, OnNotification
from nimburion.jobs.worker.join_thread import join_thread

_log = logging.getLogger("nimburion.worker")

_CLOSE_TIMEOUT = 3.0
"""Seconds for the thread of a listener to end. A worker that stops waits no longer for it."""


class SharedListener:
    """Receives the notifications of the channels of this process from the supervisor.

    If the supervisor asks for it, this process listens for all, with a listener of the backend on a
    thread. Then notifications on its own channels come from there, and those for others are sent to
    the supervisor, also while the event loop of this process is blocked.
    """

    def __init__(self, channel: SupervisorChannel) -> None:
        self._channel = channel
        self.attached: AttachedListener | None = None
        """That of the backend that was opened last."""
        self._make_listener: MakeListener | None = None
        """None: the backend does not listen."""
        self._loop: asyncio.AbstractEventLoop
        self._on_listening: OnListening
        self._on_notification: OnNotification
        self._wanted: frozenset[str] = frozenset()
        """The channels that the backend of this process wants."""
        self._wanted_by_others: frozenset[str] = frozenset()
        self._listener: ListenerThread | None = None
        """Listens for all; None: another process does."""
        self._listener_number = 0
        """Changes when one is started or closed. The reports and notifications of a former one are
        ignored."""
        self._announced: frozenset[str] = frozenset()
        """The channels of which the backend was told that their notifications arrive."""
        self._closing: set[asyncio.Task[None]] = set()

    # --- for the backend ---

    def attach(
        self,
        make_listener: MakeListener,
        on_listening: OnListening,
        on_notification: OnNotification,
    ) -> Listener:
        """Return the listener of a backend that is opened. See `ShareListener`.

        The backend that was opened before it, and is not closed yet, receives nothing more.
        """
        if self._listener is not None:  # the former backend made it
            self._close_listener()
            self._channel.send(ChannelsServed([]))
        self._announced = frozenset()
        self._make_listener = make_listener
        self._loop = asyncio.get_running_loop()
        self._on_listening, self._on_notification = on_listening, on_notification
        self.attached = AttachedListener(self)
        return self.attached

    def listen(self, channels: Collection[str]) -> None:
        """Receive the notifications of these channels from now on."""
        self._wanted = frozenset(channels)
        self._channel.send(ChannelsWanted(sorted(channels)))

    async def close(self) -> None:
        """Receive no more notifications, and stop listening for other processes."""
        self._make_listener = None
        self._wanted = self._announced = frozenset()
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
                    self._listener = self._start_listener(self._make_listener)
                self._listener.listen(self._wanted | self._wanted_by_others)

    def _start_listener(self, make_listener: MakeListener) -> ListenerThread:
        self._listener_number += 1
        number = self._listener_number
        return ListenerThread(
            make_listener, partial(self._note_listening, number), partial(self._receive, number)
        )

    def _close_listener(self) -> None:
        """Close the listener in the background. A request that follows makes another one."""
        listener, self._listener = self._listener, None
        self._listener_number += 1
        if listener is not None:
            closing = asyncio.get_running_loop().create_task(listener.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _note_state(self, *, is_listening: bool) -> None:
        """Tell the backend which of its notifications arrive, if that has changed."""
        channels = self._wanted if is_listening else frozenset()
        if self._make_listener is not None and channels != self._announced:
            self._announced = channels
            self._on_listening(channels)

    # --- on the thread of the listener, while this process listens for all ---

    def _note_listening(self, number: int, channels: Collection[str]) -> None:
        if number != self._listener_number:
            return
        self._call_soon(self._note_own_state, number, frozenset(channels))
        self._channel.send(ChannelsServed(sorted(channels)))

    def _receive(self, number: int, channel: str, text: str) -> None:
        """Pass a notification on. It is lost if the supervisor does not read; workers then poll."""
        if number != self._listener_number:
            return
        if channel in self._wanted:
            self._call_soon(self._receive_own, channel, text)
        if channel in self._wanted_by_others:
            self._channel.send_or_drop(Notification(channel, text))

    def _call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the event loop of the backend."""
        with suppress(RuntimeError):  # the loop is closed: the process is about to end
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- the same, on the event loop of the backend ---

    def _note_own_state(self, number: int, channels: frozenset[str]) -> None:
        if number == self._listener_number:
            self._note_state(is_listening=self._wanted <= channels)

    def _receive_own(self, channel: str, text: str) -> None:
        if channel in self._wanted:
            self._on_notification(channel, text)


class AttachedListener(Listener):
    """The shared listener, for one backend. Does nothing once another backend is attached."""

    def __init__(self, shared: SharedListener) -> None:
        self._shared = shared

    def listen(self, channels: Collection[str]) -> None:
        """Receive the notifications of these channels from now on."""
        if self._shared.attached is self:
            self._shared.listen(channels)

    async def close(self) -> None:
        """Receive no more notifications."""
        if self._shared.attached is self:
            await self._shared.close()


class ListenerThread(Listener):
    """Runs a listener on a thread of its own, with an event loop of its own.

    The two functions of the listener are called on this thread.
    """

    def __init__(
        self,
        make_listener: MakeListener,
        on_listening: OnListening,
        on_notification: OnNotification,
    ) -> None:
        self._listener = make_listener(on_listening, on_notification)
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="nimburion-listener", daemon=True)
        self._thread.start()

    def listen(self, channels: Collection[str]) -> None:
        """Listen on these channels from now on, in place of those of the last call."""
        self._loop.call_soon_threadsafe(self._listener.listen, channels)

    async def close(self) -> None:
        """Stop listening; return when the thread has ended, or after `_CLOSE_TIMEOUT`."""
        self._loop.call_soon_threadsafe(self._closing.set)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await join_thread(self._thread)
        except TimeoutError:
            _log.warning("the listener did not stop within %g s", _CLOSE_TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._wait_until_closed())

    async def _wait_until_closed(self) -> None:
        await self._closing.wait()
        await self._listener.close()
