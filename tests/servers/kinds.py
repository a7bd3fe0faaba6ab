"""The kinds of servers that a run may be about, and which of them it asks for.

The variable NB_TEST_SERVERS names them, with commas between; without it, those from the wheel run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from tests.servers.binaries import redis62_binary, redis_binary, valkey_binary
from tests.servers.cluster import Cluster
from tests.servers.sentinel import SentinelTrio
from tests.servers.server import Server


class Running(Protocol):
    """What every kind has; its URL is all that a store needs."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def url(self) -> str:
        """The URL for `RedisBackend`."""
        ...

    def start(self) -> None:
        """Start it and wait until it can be used."""

    def empty(self) -> None:
        """Delete all data."""

    def ask(self, *command: str | bytes | float) -> Any:
        """Send one command to a server that takes writes; return the reply."""

    def close(self) -> None:
        """End it and remove all that it kept."""

    def __enter__(self) -> Self:
        """Start it."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""


KINDS: Mapping[str, Callable[[], Running]] = {
    "valkey": lambda: Server(valkey_binary()),
    "valkey-cluster": lambda: Cluster(valkey_binary()),
    "valkey-sentinel": lambda: SentinelTrio(valkey_binary()),
    "redis": lambda: Server(redis_binary()),
    "redis-tls": lambda: Server(redis_binary(), tls=True),
    "redis-cluster": lambda: Cluster(redis_binary()),
    "redis-sentinel": lambda: SentinelTrio(redis_binary()),
    "redis62": lambda: Server(redis62_binary()),
}

BINARIES = {"valkey": valkey_binary, "redis": redis_binary, "redis62": redis62_binary}


def asked_for() -> tuple[str, ...]:
    """Return the kinds that this run asks for, in the order of KINDS; each can be had.

    `ValueError` for a kind that does not exist, `NoSuchServer` for one that is not on this machine.
    """
    named = os.environ.get("NB_TEST_SERVERS", "valkey").split(",")
    if unknown := set(named) - KINDS.keys():
        known = ", ".join(KINDS)
        raise ValueError(
            f"NB_TEST_SERVERS: no kind {', '.join(sorted(unknown))}; there are {known}"
        )
    for kind in named:
        BINARIES[kind.partition("-")[0]]()
    return tuple(kind for kind in KINDS if kind in named)
