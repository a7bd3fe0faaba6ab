"""One listener for the workers of a process, as the supervisor of several processes has one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from nimburion.core.listener import Listener, MakeListener, OnListening, OnNotification


class SharedListeners:
    """One listener for several handles of this process, as a supervisor has one."""

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._members: dict[SharedListenerPart, Collection[str]] = {}
        self._listening: frozenset[str] = frozenset()

    def share(
        self, make: MakeListener, on_listening: OnListening, on_notification: OnNotification
    ) -> Listener:
        """Return the listener of one handle."""
        if self._listener is None:
            self._listener = make(self._note_listening, self._pass_on)
        return SharedListenerPart(self, on_listening, on_notification)

    async def listen(self, part: SharedListenerPart, channels: Collection[str] | None) -> None:
        """Listen on the channels of a handle, too; None: its handle is closed."""
        assert self._listener is not None
        if channels is None:
            self._members.pop(part, None)
            if not self._members:
                await self._listener.close()
            return
        self._members[part] = channels
        self._listener.listen(frozenset().union(*self._members.values()))
        if self._listening.issuperset(channels):
            part.on_listening(channels)

    def _note_listening(self, channels: Collection[str]) -> None:
        before, self._listening = self._listening, frozenset(channels)
        for part, wanted in self._members.items():
            if self._listening.issuperset(wanted) != before.issuperset(wanted):
                part.on_listening(wanted if self._listening.issuperset(wanted) else ())

    def _pass_on(self, channel: str, text: str) -> None:
        for part, wanted in [*self._members.items()]:
            if channel in wanted:
                part.on_notification(channel, text)


class SharedListenerPart:
    """What one handle sees of a shared listener."""

    def __init__(
        self, shared: SharedListeners, on_listening: OnListening, on_notification: OnNotification
    ) -> None:
        self._shared = shared
        self.on_listening = on_listening
        self.on_notification = on_notification
        self._task: asyncio.Task[None] | None = None

    def listen(self, channels: Collection[str]) -> None:
        """Listen on these channels."""
        self._task = asyncio.create_task(self._shared.listen(self, channels))

    async def close(self) -> None:
        """Stop listening."""
        await self._shared.listen(self, None)
