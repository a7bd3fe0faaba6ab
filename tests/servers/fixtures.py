"""Servers as fixtures: one of each kind a process, started when first asked for.

They are shared. A test that stops, kills or configures a server starts one of its own.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.servers.binaries import Binary, NoSuchServer
from tests.servers.kinds import (
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
from tests.servers.server import Server

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


@pytest.fixture(params=REDIS_KINDS)
def redis_server(request: pytest.FixtureRequest, started_servers: Started) -> Running:
    """Each kind of Redis server that the run asks for, empty. Do not stop it."""
    server: Running = emptied(request, started_servers)
    return server


@pytest.fixture(params=POSTGRES_KINDS)
def postgres_server(request: pytest.FixtureRequest, started_servers: Started) -> RunningPostgres:
    """Each kind of PostgreSQL server that the run asks for, with an empty database. Do not stop
    it."""
    server: RunningPostgres = emptied(request, started_servers)
    return server


def emptied(request: pytest.FixtureRequest, started_servers: Started) -> Any:
    """The shared server of the kind that the parameter names."""
    server = started_servers[request.param]
    server.empty()
    request.node.user_properties.append(("server", server.name))
    return server


@pytest.fixture(params=BINARIES)
def redis_binary(request: pytest.FixtureRequest) -> Binary:
    """Each Redis program that the run asks for, to start servers of one's own."""
    return noted(request)


@pytest.fixture(params=[name for name in PROGRAMS if name.startswith("postgres")])
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that run on servers; leave out the servers that the run does not ask for."""
    asked = config.stash[ASKED]
    kinds, programs = {*asked}, {*map(program_of, asked)}
    wanted = dict.fromkeys(("redis_server", "postgres_server"), kinds)
    wanted |= dict.fromkeys(("redis_binary", "postgres_binary"), programs)
    left_out = [
        item
        for item in items
        if is_dealt_elsewhere(item, dealt()) or not all(wants(item, *one) for one in wanted.items())
    ]
    for item in items:
        if wanted.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def is_dealt_elsewhere(item: pytest.Item, among: tuple[str, ...]) -> bool:
    """Tell whether a case of the contract runs on another one of the kinds that share it out."""
    parameters = getattr(item, "callspec", None)
    if not among or parameters is None or item.path.parent.name != "contract":
        return False
    kinds = [kind for kind in map(str, parameters.params.values()) if kind in among]
    if not kinds:
        return False
    case = item.name.replace(kinds[0], "", 1).encode()
    return kinds[0] != among[zlib.crc32(case) % len(among)]


def wants(item: pytest.Item, fixture: str, kinds: set[str]) -> bool:
    """Tell whether a test's parameter for this fixture, if it has one, is among these."""
    call = getattr(item, "callspec", None)
    return call is None or fixture not in call.params or call.params[fixture] in kinds


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
