"""Frames on a stream."""

from __future__ import annotations

import pytest

from nimburion.core.frames import FrameSplitter, UnreadableFrame, add_length


def test_frames_are_split_wherever_the_stream_is_cut() -> None:
    bodies = [b"", b"short", bytes(300)]
    stream = b"".join(map(add_length, bodies))
    for size in range(1, len(stream)):
        splitter = FrameSplitter()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [body for piece in pieces for body in splitter.feed(piece)] == bodies


def test_a_length_beyond_reason_is_no_frame() -> None:
    with pytest.raises(UnreadableFrame):
        FrameSplitter().feed(b"\xff" * 4)
