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

from tests.servers.binaries import Binary, ServerNotFound
from tests.servers.server import Server
from tests.servers.server_kinds import (
    BINARIES,
    KINDS,
    POSTGRES_KINDS,
    PROGRAMS,
    REDIS_KINDS,
    RunningPostgres,
    RunningRedis,
    SharedServer,
    find_program,
    read_contract_kinds,
    read_requested_kinds,
    read_share,
)

REQUESTED_KINDS = pytest.StashKey[tuple[str, ...]]()


class StartedServers:
    """The servers that this process has started so far, by kind."""

    def __init__(self) -> None:
        self._running: dict[str, SharedServer] = {}
        self._stack = ExitStack()

    def __getitem__(self, kind: str) -> SharedServer:
        """Return the server of this kind; the first time, start it."""
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(KINDS[kind]())
        return self._running[kind]

    def close(self) -> None:
        """End them all."""
        self._stack.close()


@pytest.fixture(scope="session")
def started_servers() -> Iterator[StartedServers]:
    """The servers of this process."""
    started = StartedServers()
    yield started
    started.close()


@pytest.fixture(scope="session")
def valkey(started_servers: StartedServers) -> Server:
    """Valkey from the wheel; it keeps what other tests left in it. Do not stop it."""
    server = started_servers["valkey"]
    assert isinstance(server, Server)
    return server


@pytest.fixture
def redis_server(request: pytest.FixtureRequest, started_servers: StartedServers) -> RunningRedis:
    """Each kind of Redis server that the run asks for, empty. Do not stop it."""
    server: RunningRedis = get_empty_server(request, started_servers)
    return server


@pytest.fixture
def single_redis(request: pytest.FixtureRequest, started_servers: StartedServers) -> RunningRedis:
    """A single server, empty, of each Redis program that the run asks for: for what is the same
    however a server is reached. Do not stop it."""
    server: RunningRedis = get_empty_server(request, started_servers)
    return server


@pytest.fixture
def postgres_server(
    request: pytest.FixtureRequest, started_servers: StartedServers
) -> RunningPostgres:
    """Each kind of PostgreSQL server that the run asks for, with an empty database. Do not stop
    it."""
    server: RunningPostgres = get_empty_server(request, started_servers)
    return server


@pytest.fixture
def direct_postgres(postgres_server: RunningPostgres) -> RunningPostgres:
    """As `postgres_server`, but no pooler: for what needs LISTEN."""
    if "PgBouncer" in postgres_server.name:
        pytest.skip("nobody can listen behind it")
    return postgres_server


@pytest.fixture
def clean_postgres(
    request: pytest.FixtureRequest, started_servers: StartedServers
) -> RunningPostgres:
    """As `postgres_server`, but with the empty tables of a backend, once one was opened there:
    making them is most of what a new backend costs. Do not change them."""
    server: RunningPostgres = get_server(request, started_servers)
    server.forget()
    return server


def get_empty_server(request: pytest.FixtureRequest, started_servers: StartedServers) -> Any:
    """The shared server of the kind that the parameter names."""
    server = get_server(request, started_servers)
    server.empty()
    return server


def get_server(request: pytest.FixtureRequest, started_servers: StartedServers) -> Any:
    """The same, as it is; the run's last words count it."""
    server = started_servers[request.param]
    request.node.user_properties.append(("server", server.name))
    return server


@pytest.fixture
def redis_binary(request: pytest.FixtureRequest) -> Binary:
    """Each Redis program that the run asks for, to start servers of one's own."""
    return get_program(request)


@pytest.fixture
def postgres_binary(request: pytest.FixtureRequest) -> Binary:
    """Each PostgreSQL program that the run asks for, to start servers of one's own."""
    return get_program(request)


def get_program(request: pytest.FixtureRequest) -> Binary:
    """The program that the parameter names; the run's last words count it."""
    binary = PROGRAMS[request.param]()
    request.node.user_properties.append(("server", binary.name))
    return binary


# --- which of them run, and how it is reported ---------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Learn what the run asks for; what cannot be had ends it before it begins."""
    try:
        config.stash[REQUESTED_KINDS] = read_requested_kinds()
    except (ValueError, ServerNotFound) as error:
        raise pytest.UsageError(str(error)) from error


EACH: Mapping[str, Iterable[str]] = {
    "redis_server": REDIS_KINDS,
    "single_redis": BINARIES,
    "redis_binary": BINARIES,
    "postgres_server": POSTGRES_KINDS,
    "clean_postgres": POSTGRES_KINDS,
    "postgres_binary": [name for name in PROGRAMS if name.startswith("postgres")],
}
"""The fixtures with which a test runs once for each server or program that the run asks for."""
NONE = "none of those that the run asks for"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the tests for the servers that the run asks for, and no others: they are many."""
    named = list_server_fixtures(metafunc.definition)
    for name, requested in select_tests(metafunc.config).items():
        if name in metafunc.fixturenames and name not in named:
            metafunc.parametrize(name, requested or [NONE], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that run on servers; leave out those that the run does not ask for."""
    requested, among = select_tests(config), read_contract_kinds()
    left_out = {
        item
        for item in items
        if not needs_server(item, requested)
        or runs_elsewhere(item, among, requested)
        or is_left_out_by_share(item)
    }
    for item in items:
        if EACH.keys() & {*getattr(item, "fixturenames", ())}:
            item.add_marker("server")
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


def select_tests(config: pytest.Config) -> dict[str, list[str]]:
    """For each of those fixtures, the servers or programs that the run asks for."""
    kinds = config.stash[REQUESTED_KINDS]
    programs = {*map(find_program, kinds)}
    return {
        name: [one for one in every if one in (programs if name.endswith("binary") else kinds)]
        for name, every in EACH.items()
    }


def needs_server(item: pytest.Item, requested: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether the servers that a test is for are among these."""
    call = getattr(item, "callspec", None)
    return call is None or all(
        call.params[name] in requested[name] for name in EACH.keys() & call.params.keys()
    )


def runs_elsewhere(
    item: pytest.Item, among: Sequence[str], requested: Mapping[str, Sequence[str]]
) -> bool:
    """Tell whether a test runs on another one of the servers that share the tests out."""
    call = getattr(item, "callspec", None)
    if call is None:
        return False
    for name in EACH.keys() & call.params.keys():
        ours = {*map(find_program, among)} if name.endswith("binary") else {*among}
        players = [one for one in requested[name] if one in ours]
        mine = call.params[name]
        if mine in REDIS_KINDS and item.get_closest_marker("regression"):
            continue
        case = item.name.replace(mine, "", 1).encode()
        turn, player = divmod(zlib.crc32(case), len(players) or 1)
        share = read_share() if is_shared_out(item) else 1
        if mine in players and (mine != players[player] or turn % share):
            return name not in list_server_fixtures(item)
    return False


def is_shared_out(item: pytest.Item) -> bool:
    """Tell whether a share of such tests is enough for the other kinds of servers.

    `dev.py test` runs them on the usual servers. It leaves long tests out, and how a client
    connects is what differs between the kinds.
    """
    if item.path.parent.name == "contract":
        return True
    connects = any(word in item.nodeid.partition("::")[0] for word in ("connect", "pool"))
    return not connects and not {"slow", "wide"} & {*item.keywords}


def is_left_out_by_share(item: pytest.Item) -> bool:
    """Tell whether a case of the contract for a backend without a server is not in the share."""
    if item.path.parent.name != "contract" or EACH.keys() & {*getattr(item, "fixturenames", ())}:
        return False
    if item.get_closest_marker("regression"):
        return False
    return zlib.crc32(item.name.encode()) % read_share() != 0


def list_server_fixtures(item: pytest.Item) -> set[str]:
    """The fixtures for which a test names servers itself."""
    return {mark.args[0] for mark in item.iter_markers("parametrize")}


def pytest_report_header(config: pytest.Config) -> str:
    """Name the servers that the run asks for."""
    requested = config.stash[REQUESTED_KINDS]
    programs = ", ".join(
        PROGRAMS[name]().name for name in dict.fromkeys(map(find_program, requested))
    )
    return f"servers: {', '.join(requested)} ({programs})"


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
