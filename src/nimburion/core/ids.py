"""Ids: time-ordered for jobs, random for sessions and nonces. Digests: two jobs with one id are the
same job if their digests are equal.

`JobIds` follows UUID version 7 of RFC 9562 §5.7: 48 bits of Unix milliseconds, then 12 bits of the
fraction of that millisecond (§6.2, method 3), then 62 random bits.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimburion.core.job import NewJob

Entropy = Callable[[int], bytes]
"""Returns the given number of random bytes. `os.urandom`, or a seeded function in tests."""

_TICKS_PER_MS = 4096
"""Ids made in one millisecond stay in order by the 12 bits that follow the time in a UUIDv7."""
_BUFFERED_IDS = 256
"""Ids whose random bits are read in one call: a system call costs more than an id."""
_MIN_COLUMN_COUNT = 4
"""From this many ids on, formatting by column is faster than one by one."""
_PLACES = (*range(8), *range(9, 13), *range(14, 18), *range(19, 23), *range(24, 36))
"""The positions of the hexadecimal digits in the text of an id."""
_VARIANTS = bytes.maketrans(b"0123456789abcdef", b"89ab89ab89ab89ab")
_LOW_BITS = 0x3FFF_FFFF_FFFF_FFFF
_VARIANT = 0x8000_0000_0000_0000


class JobIds:
    """A generator of job ids: UUIDv7 text, always increasing, even if the clock steps back.

    >>> ids = JobIds(now=lambda: 1_700_000_000.0, entropy=bytes)
    >>> ids.make()
    '018bcfe5-6800-7000-8000-000000000000'
    """

    __slots__ = ("_buffer", "_entropy", "_last", "_lock", "_now", "_used")

    def __init__(self, now: Callable[[], float], entropy: Entropy = os.urandom) -> None:
        self._now = now
        self._entropy = entropy
        self._lock = threading.Lock()
        self._last = 0
        self._buffer = b""
        self._used = _BUFFERED_IDS

    def make(self) -> str:
        """Return a new id. Thread-safe."""
        with self._lock:
            tick = max(int(self._now() * 1000 * _TICKS_PER_MS), self._last + 1)
            self._last = tick
            if self._used >= _BUFFERED_IDS:
                self._buffer = self._entropy(8 * _BUFFERED_IDS)
                self._used = 0
            start = 8 * self._used
            self._used += 1
            low = int.from_bytes(self._buffer[start : start + 8], "big")
        low = low & _LOW_BITS | _VARIANT
        return (
            f"{tick >> 28:08x}-{tick >> 12 & 0xFFFF:04x}-{0x7000 | tick & 0xFFF:04x}-"
            f"{low >> 48:04x}-{low & 0xFFFF_FFFF_FFFF:012x}"
        )

    def make_many(self, count: int) -> list[str]:
        """Return `count` new ids in increasing order. Each takes a third of the time of `make`."""
        if count < _MIN_COLUMN_COUNT:
            return [self.make() for _ in range(count)]
        with self._lock:
            tick = max(int(self._now() * 1000 * _TICKS_PER_MS), self._last + 1)
            self._last = tick + count - 1
        return _format_ids(range(tick, tick + count), self._entropy(8 * count))


def _format_ids(ticks: range, random: bytes) -> list[str]:
    """Return the ids of these ticks, formatted by column: one digit of all ids at a time."""
    high = (
        struct.pack(f">{len(ticks)}Q", *[_encode_timestamp(tick) for tick in ticks]).hex().encode()
    )
    low = random.hex().encode()
    text = bytearray(b"-") * (36 * len(ticks))
    for place, at in enumerate(_PLACES):
        text[at::36] = (high if place < 16 else low)[place % 16 :: 16]
    text[19::36] = low[0::16].translate(_VARIANTS)
    ids = text.decode()
    return [ids[start : start + 36] for start in range(0, len(ids), 36)]


def _encode_timestamp(tick: int) -> int:
    """Return the upper 64 bits of an id, which encode its creation time."""
    return (tick >> 12) << 16 | 0x7000 | (tick & 0xFFF)


def make_session_id(entropy: Entropy = os.urandom) -> str:
    """Return a random 128-bit id, as hex.

    It is never derived from host or process, because those repeat.
    """
    return entropy(16).hex()


def make_bulk_operation_id(entropy: Entropy = os.urandom) -> str:
    """Return a new random id of a bulk operation, short enough to type: `op-` and 16 hex digits."""
    return f"op-{entropy(8).hex()}"


def make_repeatable_id(caller: str, key: str) -> str:
    """Return the id of what a caller stores with a key of their own, such as an `Idempotency-Key`.

    The same key makes the same id, on every server and after a restart.
    """
    digest = hashlib.blake2b(f"{caller}\0{key}".encode(), digest_size=16).hexdigest()
    return f"key-{digest}"


def compute_digest(name: str, payload: bytes) -> bytes:
    """Return 16 bytes that distinguish a body (name and payload) from others with the same id."""
    body = hashlib.blake2b(name.encode() + b"\0", digest_size=16)
    body.update(payload)
    return body.digest()


def compute_digests(jobs: Sequence[NewJob]) -> list[bytes]:
    """Return the digests of the bodies of many jobs, in their order.

    Each takes half the time of a single `compute_digest`.
    """
    begun: dict[str, hashlib.blake2b] = {}
    made = []
    for job in jobs:
        name = begun.get(job.name)
        if name is None:
            name = hashlib.blake2b(job.name.encode() + b"\0", digest_size=16)
            begun[job.name] = name
        body = name.copy()
        body.update(job.payload)
        made.append(body.digest())
    return made
