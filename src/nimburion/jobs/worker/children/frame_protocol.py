"""The end of a channel that reads frames on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from nimburion.jobs.worker.children.frames import FrameSplitter, UnreadableFrame


class FrameProtocol(asyncio.Protocol):
    """Reads frames, and closes the connection after one that cannot be read.

    `on_frame` gets the body of each frame. It may raise `msgspec.MsgspecError`. `on_disconnect`
    gets the error that ended the connection, or None.
    """

    def __init__(
        self,
        on_frame: Callable[[bytes], None],
        on_disconnect: Callable[[Exception | None], None],
    ) -> None:
        self._splitter = FrameSplitter()
        self._on_frame = on_frame
        self._on_disconnect = on_disconnect
        self._transport: asyncio.BaseTransport | None = None
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._on_frame(body)
        except (UnreadableFrame, msgspec.MsgspecError) as error:
            self._error = error
            if self._transport is not None:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_disconnect(self._error or exc)
