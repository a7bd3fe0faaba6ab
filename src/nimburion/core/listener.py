"""The listener of a backend whose worker processes can share one (`SharedListening`)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

OnListening = Callable[[Collection[str]], None]
"""Is called with the channels whose notifications arrive from now on; some may have been lost
before. Without channels: none arrive until the next call.
"""
OnNotification = Callable[[str, str], None]
"""Is called with the channel and the text of each notification."""


class Listener(Protocol):
    """Receives the notifications of some channels of a server."""

    def listen(self, channels: Collection[str]) -> None:
        """Listen on these channels from now on, in place of those of the last call.

        Notifications of former channels may still arrive. Ignore them.
        """
        ...

    async def close(self) -> None:
        """Stop listening."""
        ...


MakeListener = Callable[[OnListening, OnNotification], Listener]
"""Returns a listener with a connection of its own."""
ShareListener = Callable[[MakeListener, OnListening, OnNotification], Listener]
"""Returns a listener that several processes share. The first argument makes the real one, if this
process is to listen for all.
"""
