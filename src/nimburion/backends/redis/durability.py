"""`durable_enqueue`: an enqueue is answered when the server has it on its disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.redis.address import Address
from nimburion.core.errors import BackendUnavailable

_SHARE = 0.8
"""Of the time for an answer: what is left is for the way."""


def flush_of(address: Address) -> tuple[bytes | int, ...]:
    """The command that waits until what was written before it is in the append-only file, fsync
    done. It counts on the connection of the write, also where a repetition wrote nothing."""
    return b"WAITAOF", 1, 0, int(address.timeout * 1000 * _SHARE)


def check_flushed(replies: Sequence[Any], address: Address) -> None:
    """Raise `BackendUnavailable` (outcome `applied`) where the fsync did not come in time."""
    for local, _ in replies:
        if local < 1:
            raise BackendUnavailable(
                f"{address.describe()}: stored, but not on the server's disk within "
                f"{address.timeout * _SHARE:g} s; is its disk slow, or a rewrite under way?",
                outcome="applied",
            )
