"""Frames: messages on a stream between two processes of one host.

A frame is a length (four bytes, little-endian) and a body. What a body means is the matter of those
who send it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

MAX_FRAME = 1 << 30
"""Bytes. A longer frame is a sign that other code has written to the channel."""

_HEADER = 4
"""Bytes of the length before each frame."""


class UnreadableFrame(Exception):
    """The bytes are not a frame: something else has written to the channel."""


def add_length(body: bytes) -> bytes:
    """Return a frame: the body with its length before it."""
    return len(body).to_bytes(_HEADER, "little") + body


class FrameSplitter:
    """Splits a stream of bytes into the bodies of frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes and return the bodies that are complete now. Raises `UnreadableFrame`."""
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(buffer) - start >= _HEADER:
            length = int.from_bytes(buffer[start : start + _HEADER], "little")
            if length > MAX_FRAME:
                raise UnreadableFrame(f"a frame of {length} bytes")
            end = start + _HEADER + length
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[start + _HEADER : end]))
            start = end
        del buffer[:start]
        return bodies


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
