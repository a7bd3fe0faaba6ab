"""Pictures as PNG files with nothing but the standard library: drawn, read, shrunk."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from random import Random
from typing import NamedTuple

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_RGB = 3


class Picture(NamedTuple):
    """Rows of red, green and blue bytes."""

    width: int
    height: int
    rows: list[bytes]


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture: 8 bits a channel, no filter."""
    header = _HEADER.pack(picture.width, picture.height, 8, 2, 0, 0, 0)
    raw = b"".join(b"\0" + row for row in picture.rows)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    path.write_bytes(_SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks))


def read_png(path: Path) -> Picture:
    """Read a picture that `write_png` wrote; `ValueError` for any other file."""
    content = path.read_bytes()
    if not content.startswith(_SIGNATURE):
        raise ValueError(f"{path.name} is no PNG file")
    parts = dict(_chunks(content))
    width, height, *rest = _HEADER.unpack(parts[b"IHDR"])
    if rest != [8, 2, 0, 0, 0]:
        raise ValueError(f"{path.name} is a kind of PNG that is not read here")
    raw = zlib.decompress(parts[b"IDAT"])
    stride = 1 + _RGB * width
    rows = [raw[at + 1 : at + stride] for at in range(0, stride * height, stride)]
    return Picture(width, height, rows)


def shrunk(picture: Picture, factor: int) -> Picture:
    """Each square of `factor` by `factor` pixels becomes their mean."""
    width, height = picture.width // factor, picture.height // factor
    rows = [
        _mean_row(picture.rows[factor * y : factor * (y + 1)], width, factor) for y in range(height)
    ]
    return Picture(width, height, rows)


def drawn(width: int, height: int, random: Random) -> Picture:
    """Soft colours with a disc, different for each random state."""
    waves = [(random.uniform(1, 5), random.uniform(0, 6)) for _ in range(_RGB)]
    centre = random.uniform(0.3, 0.7) * width, random.uniform(0.3, 0.7) * height
    radius = random.uniform(0.15, 0.3) * height
    across = [_wave(waves, x / width) for x in range(width)]
    down = [_wave(waves[::-1], y / height) for y in range(height)]
    rows = [_row(across, down[y], y, centre, radius) for y in range(height)]
    return Picture(width, height, rows)


def _wave(waves: list[tuple[float, float]], at: float) -> tuple[int, ...]:
    return tuple(int(63 + 63 * math.sin(speed * at + shift)) for speed, shift in waves)


def _row(
    across: list[tuple[int, ...]],
    down: tuple[int, ...],
    y: int,
    centre: tuple[float, float],
    radius: float,
) -> bytes:
    half = math.sqrt(max(0.0, radius**2 - (y - centre[1]) ** 2))
    row = bytearray()
    for x, colour in enumerate(across):
        light = 60 if abs(x - centre[0]) < half else 0
        row += bytes(min(255, one + two + light) for one, two in zip(colour, down, strict=True))
    return bytes(row)


def _mean_row(rows: list[bytes], width: int, factor: int) -> bytes:
    row = bytearray()
    for x in range(width):
        start = _RGB * factor * x
        box = b"".join(one[start : start + _RGB * factor] for one in rows)
        row += bytes(sum(box[channel::_RGB]) // factor**2 for channel in range(_RGB))
    return bytes(row)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    at = len(_SIGNATURE)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found
