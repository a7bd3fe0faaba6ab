"""`durable_enqueue`: an enqueue is answered when the server has it on its disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.redis.address import Address
from nimburion.backends.redis.scripts import Script
from nimburion.core.errors import BackendUnavailable

_SHARE = 0.8
"""Of the time for an answer: what is left is for the way."""

Command = tuple[bytes | int, ...]


def flush_by(touch: Script, keys: Sequence[bytes], address: Address) -> list[Command]:
    """The commands, behind an enqueue in its trip, that wait until the append-only file holds all
    that was written before them, fsync done. The first writes something (see `flush.lua`)."""
    write: Command = (b"EVAL", touch.text, len(keys), *keys)
    return [write, (b"WAITAOF", 1, 0, int(address.timeout * 1000 * _SHARE))]


def check_flushed(replies: Sequence[Any], address: Address) -> None:
    """Raise `BackendUnavailable` (outcome `applied`) where the fsync did not come in time."""
    _, (local, _) = replies
    if local < 1:
        raise BackendUnavailable(
            f"{address.describe()}: stored, but not on the server's disk within "
            f"{address.timeout * _SHARE:g} s; is its disk slow, or a rewrite under way?",
            outcome="applied",
        )
