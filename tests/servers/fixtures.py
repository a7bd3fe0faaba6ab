"""Servers as fixtures: one of each kind a process, started when first asked for.

They are shared. A test that stops, kills or configures a server starts one of its own.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.servers.binaries import Binary, NoSuchServer
from tests.servers.server import Server
from tests.servers.server_kinds import (
    BINARIES,
    KINDS,
    POSTGRES_KINDS,
    PROGRAMS,
    REDIS_KINDS,
    Kept,
    Running,
    RunningPostgres,
    asked_for,
    dealt,
    program_of,
)

ASKED = pytest.StashKey[tuple[str, ...]]()


class Started:
    """The servers that this process has started so far, by kind."""

    def __init__(self) -> None:
        self._running: dict[str, Kept] = {}
        self._stack = ExitStack()

    def __getitem__(self, kind: str) -> Kept:
        """Return the server of this kind; the first time, start it."""
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(KINDS[kind]())
        return self._running[kind]

    def close(self) -> None:
        """End them all."""
        self._stack.close()


@pytest.fixture(scope="session")
def started_servers() -> Iterator[Started]:
    """The servers of this process."""
    started = Started()
    yield started
    started.close()


@pytest.fixture(scope="session")
def valkey(started_servers: Started) -> Server:
    """Valkey from the wheel; it keeps what other tests left in it. Do not stop it."""
    server = started_servers["valkey"]
    assert isinstance(server, Server)
    return server


@pytest.fixture
def redis_server(request: pytest.FixtureRequest, started_servers: Started) -> Running:
    """Each kind of Redis server that the run asks for, empty. Do not stop it."""
    server: Running = emptied(request, started_servers)
    return server


@pytest.fixture
def postgres_server(request: pytest.FixtureRequest, started_servers: Started) -> RunningPostgres:
    """Each kind of PostgreSQL server that the run asks for, with an empty database. Do not stop
    it."""
    server: RunningPostgres = emptied(request, started_servers)
    return server


@pytest.fixture
def postgres_store(request: pytest.FixtureRequest, started_servers: Started) -> RunningPostgres:
    """As `postgres_server`, but with the empty tables of a store, once one was opened there: making
    them is most of what a new store costs. Do not change them."""
    server: RunningPostgres = noted_server(request, started_servers)
    server.forget()
    return server


def emptied(request: pytest.FixtureRequest, started_servers: Started) -> Any:
    """The shared server of the kind that the parameter names."""
    server = noted_server(request, started_servers)
    server.empty()
    return server


def noted_server(request: pytest.FixtureRequest, started_servers: Started) -> Any:
    """The same, as it is; the run's last words count it."""
    server = started_servers[request.param]
    request.node.user_properties.append(("server", server.name))
    return server


@pytest.fixture
def redis_binary(request: pytest.FixtureRequest) -> Binary:
    """Each Redis program that the run asks for, to start servers of one's own."""
    return noted(request)


@pytest.fixture
def postgres_binary(request: pytest.FixtureRequest) -> Binary:
    """Each PostgreSQL program that the run asks for, to start servers of one's own."""
    return noted(request)


def noted(request: pytest.FixtureRequest) -> Binary:
    """The program that the parameter names; the run's last words count it."""
    binary = PROGRAMS[request.param]()
    request.node.user_properties.append(("server", binary.name))
    return binary


# --- which of them run, and what is said of it ---------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Learn what the run asks for; what cannot be had ends it before it begins."""
    try:
        config.stash[ASKED] = asked_for()
    except (ValueError, NoSuchServer) as error:
        raise pytest.UsageError(str(error)) from error


EACH: Mapping[str, Iterable[str]] = {
    "redis_server": REDIS_KINDS,
    "redis_binary": BINARIES,
    "postgres_server": POSTGRES_KINDS,
    "postgres_store": POSTGRES_KINDS,
    "postgres_binary": [name for name in PROGRAMS if name.startswith("postgres")],
}
"""The fixtures with which a test runs once for each server or program that the run asks for."""
NONE = "none of those that the run asks for"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the tests for the servers that the run asks for, and no others: they are many."""
    named = named_by(metafunc.definition)
    for name, asked in in_this_run(metafunc.config).items():
        if name in metafunc.fixturenames and name not in named:
            metafunc.parametrize(name, asked or [NONE], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that run on servers; leave out those that the run does not ask for."""
    asked, among = in_this_run(config), dealt()
    left_out = {
        item for item in items if not wants(item, asked) or is_dealt_elsewhere(item, among, asked)
    }
    for item in items:
        if EACH.keys() & {*getattr(item, "fixturenames", ())}:
            item.add_marker("server")
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


def in_this_run(config: pytest.Config) -> dict[str, list[str]]:
    """For each of those fixtures, the servers or programs that the run asks for."""
    kinds = config.stash[ASKED]
    programs = {*map(program_of, kinds)}
    return {
        name: [one for one in every if one in (programs if name.endswith("binary") else kinds)]
        for name, every in EACH.items()
    }


def wants(item: pytest.Item, asked: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether the servers that a test is for are among these."""
    call = getattr(item, "callspec", None)
    return call is None or all(
        call.params[name] in asked[name] for name in EACH.keys() & call.params.keys()
    )


def is_dealt_elsewhere(
    item: pytest.Item, among: Sequence[str], asked: Mapping[str, Sequence[str]]
) -> bool:
    """Tell whether a test runs on another one of the servers that share the tests out."""
    call = getattr(item, "callspec", None)
    if call is None:
        return False
    for name in EACH.keys() & call.params.keys():
        ours = {*map(program_of, among)} if name.endswith("binary") else {*among}
        players = [one for one in asked[name] if one in ours]
        mine = call.params[name]
        case = item.name.replace(mine, "", 1).encode()
        if mine in players and mine != players[zlib.crc32(case) % len(players)]:
            return name not in named_by(item)
    return False


def named_by(item: pytest.Item) -> set[str]:
    """The fixtures for which a test names servers itself."""
    return {mark.args[0] for mark in item.iter_markers("parametrize")}


def pytest_report_header(config: pytest.Config) -> str:
    """Name the servers that the run asks for."""
    asked = config.stash[ASKED]
    programs = ", ".join(PROGRAMS[name]().name for name in dict.fromkeys(map(program_of, asked)))
    return f"servers: {', '.join(asked)} ({programs})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests passed on which server."""
    passed = Counter(
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "server"
    )
    counts = ", ".join(f"{server} {count}" for server, count in sorted(passed.items()))
    terminalreporter.write_line(f"tests passed by server: {counts or 'none in this run'}")
