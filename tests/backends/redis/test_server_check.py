"""Checks of a server when a backend is opened on it, and when an operator runs them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.backends.redis.checks import run_checks
from nimburion.backends.redis.connection.command_connection import CommandConnection
from nimburion.backends.redis.connection.topology import ServerLocator
from nimburion.backends.redis.server_check import RedisServerInfo, SendCommand, check_server
from nimburion.backends.redis.url import parse_url
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.errors import BackendUnavailable, ConfigurationError
from nimburion.core.timing.clock import Clock, SystemClock
from nimburion.testing import FakeClock
from tests import servers
from tests.servers import Binary, Cluster, valkey_binary
from tests.waiting import block_until

SAFE = ("appendonly yes", "appendfsync everysec")


@asynccontextmanager
async def open_send_command(url: str) -> AsyncIterator[SendCommand]:
    """What sends commands, as a backend has it."""
    settings = parse_url(url)
    connection = CommandConnection(ServerLocator(settings), settings.describe(), settings.timeout)
    try:
        yield connection.execute
    finally:
        await connection.close()


async def check_url(url: str) -> RedisServerInfo:
    async with open_send_command(url) as send:
        return await check_server(send, parse_url(url), set())


async def get_error(url: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        await check_url(url)
    connection = str(caught.value)
    assert connection.startswith(parse_url(url).describe())
    assert "\n" not in connection
    return connection


# --- what it is -----------------------------------------------------------------------------------


async def test_product_version_and_settings(redis_binary: Binary) -> None:
    with servers.Server(redis_binary, *SAFE, maxmemory="300mb") as server:
        found = await check_url(server.url)
    assert found == RedisServerInfo(
        product=redis_binary.product,
        version=redis_binary.version,
        cluster=False,
        append_only=True,
        fsync="everysec",
        maxmemory=300 << 20,
        eviction_policy="noeviction",
    )
    assert found.name == redis_binary.name
    assert found.has_waitaof == (redis_binary.version >= (7, 2))


async def test_a_user_who_may_not_see_the_settings(redis_binary: Binary) -> None:
    users = ["worker on >pw ~* +@all -config"]
    with servers.Server(redis_binary, *SAFE, users=users) as server:
        url = server.url_for("worker", "pw")
        assert (await check_url(f"{url}?require_durable=true")).fsync is None
        assert (
            "this user may not read when it is synced" in (await find_check(url, "durability")).text
        )


async def test_a_user_who_may_not_see_anything(redis_binary: Binary) -> None:
    with servers.Server(redis_binary, users=["worker on >pw ~* +@all -info"]) as server:
        assert "this user may not run 'INFO'" in await get_error(server.url_for("worker", "pw"))


# --- what would be lost ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_server() -> Iterator[servers.Server]:
    """A server as it comes."""
    with servers.Server(valkey_binary()) as server:
        yield server


@pytest.fixture(scope="module")
def durable_server() -> Iterator[servers.Server]:
    """A server that keeps jobs. Tests set it up otherwise, and `settled` sets it right again."""
    with servers.Server(valkey_binary(), *SAFE) as server:
        yield server


@pytest.fixture
def change_setting(durable_server: servers.Server) -> Iterator[Callable[[str, str], object]]:
    """Change a setting of the safe server, for one test."""
    changed: dict[str, bytes] = {}

    def change(name: str, value: str) -> None:
        changed.setdefault(name, durable_server.ask("CONFIG", "GET", name)[1])
        durable_server.ask("CONFIG", "SET", name, value)

    yield change
    for name, value in changed.items():
        durable_server.ask("CONFIG", "SET", name, value)


@pytest.fixture
def risk_after_change(
    durable_server: servers.Server, change_setting: Callable[[str, str], object]
) -> Callable[[str], str]:
    """Change a setting, written as in the server's file; the URL."""

    def change(setting: str) -> str:
        name, _, value = setting.partition(" ")
        change_setting(name, value)
        return durable_server.url

    return change


async def test_stock_settings_are_warned_of_once(
    default_server: servers.Server, caplog: pytest.LogCaptureFixture
) -> None:
    backend = RedisBackend(default_server.url)
    with caplog.at_level(logging.WARNING, "nimburion.backends.redis"):
        for handle in (backend, backend, backend.new_handle(), backend.new_handle().new_handle()):
            await handle.open()
            await handle.close()
        assert await backend.migrate(dry_run=True) == []
    (warning,) = caplog.messages
    assert warning.startswith(
        f"Redis {default_server.address}/0: the server keeps no append-only file"
    )
    assert "every job since its last snapshot is lost" in warning
    assert "CONFIG SET appendonly yes, then CONFIG REWRITE" in warning


async def test_each_backend_warns_for_itself(
    default_server: servers.Server, caplog: pytest.LogCaptureFixture
) -> None:
    """What one backend of a process has logged, another one logs too."""
    with caplog.at_level(logging.WARNING, "nimburion.backends.redis"):
        for url in (
            default_server.url,
            default_server.url,
            f"{default_server.url}?namespace=other",
        ):
            backend = RedisBackend(url)
            await backend.open()
            await backend.close()
    assert len(caplog.messages) == 3
    assert 'namespace "other"' in caplog.messages[2]


async def test_safe_settings_are_not_warned_of(
    durable_server: servers.Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "nimburion.backends.redis"):
        await check_url(f"{durable_server.url}?require_durable=true")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("version", "fsync", "trusted"),
    [
        ("redis_version:7.4.9\nvalkey_version:9.1.2", "everysec", False),
        ("redis_version:7.4.9\nvalkey_version:9.1.2", "always", True),
        ("redis_version:7.4.1", "everysec", False),
        ("redis_version:8.0.2", "everysec", True),
    ],
)
async def test_servers_whose_waitaof_is_not_trusted(
    version: str, fsync: str, trusted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def send(*command: Any) -> Any:
        return (
            f"{version}\naof_enabled:1".encode() if command == ("INFO",) else [b"", fsync.encode()]
        )

    with caplog.at_level(logging.WARNING, "nimburion.backends.redis"):
        await check_server(send, parse_url("redis://a?durable_enqueue=true"), set())
    assert [
        connection
        for connection in caplog.messages
        if "answers WAITAOF before its sync" in connection
    ] == (caplog.messages)
    assert len(caplog.messages) == (0 if trusted else 1)


@pytest.mark.parametrize(
    ("setting", "lost", "cure"),
    [
        ("appendonly no", "every job since its last snapshot", "CONFIG SET appendonly yes"),
        ("appendfsync no", "jobs of about the last 30 s", "CONFIG SET appendfsync everysec"),
        ("maxmemory-policy allkeys-lru", "deletes keys of ours", "maxmemory-policy noeviction"),
        ("maxmemory-policy allkeys-random", "deletes keys of ours", "noeviction"),
    ],
)
async def test_each_risk_is_a_warning_and_with_require_durable_an_error(
    setting: str,
    lost: str,
    cure: str,
    risk_after_change: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = risk_after_change(setting)
    with caplog.at_level(logging.WARNING, "nimburion.backends.redis"):
        await check_url(url)
    (warning,) = caplog.messages
    error = await get_error(f"{url}?require_durable=true")
    assert "require_durable, but" in error
    for connection in (warning, error):
        assert lost in connection
        assert cure in connection


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-ttl"])
async def test_policies_that_leave_our_keys_alone(
    policy: str, durable_server: servers.Server, change_setting: Callable[[str, str], object]
) -> None:
    change_setting("maxmemory-policy", policy)
    await check_url(f"{durable_server.url}?require_durable=true")
    found = await find_check(durable_server.url, "eviction")
    assert found.verdict == "good"
    assert ("refuses writes" in found.text) == (policy == "noeviction")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("appendonly", "no"), ("appendfsync", "no")])
async def test_an_enqueue_cannot_wait_for_a_disk_that_is_never_synced(
    name: str,
    value: str,
    durable_server: servers.Server,
    change_setting: Callable[[str, str], object],
) -> None:
    change_setting(name, value)
    connection = await get_error(f"{durable_server.url}?durable_enqueue=true")
    assert "durable_enqueue, but the server" in connection
    assert f"CONFIG SET {name}" in connection


def make_fake_info(info: str) -> SendCommand:
    """A server that says this of itself."""

    async def send(*command: Any) -> Any:
        return info.encode() if command == ("INFO",) else [b"appendfsync", b"everysec"]

    return send


async def test_unsupported_servers() -> None:
    for info, url, why in [
        ("redis_version:6.0.16", "redis://a", "Redis 6.0.16 is too old; 6.2 is the oldest"),
        ("redis_version:5.0.14", "redis://a", "Redis 5.0.14 is too old"),
        ("version:1.6.22", "redis://a", "this is neither Redis nor Valkey"),
        ("redis_version:6.2.5\naof_enabled:1", "redis://a?durable_enqueue=true",
         "Redis 6.2.5 has no WAITAOF: Redis 7.2 or Valkey is needed"),
        ("redis_version:8.0.2\ncluster_enabled:1", "redis://a:7000",
         "a node of a cluster; use redis+cluster://a:7000"),
        ("redis_version:8.0.2\ncluster_enabled:1", "unix:///a", "use redis+cluster://HOST:PORT"),
    ]:  # fmt: skip
        with pytest.raises(ConfigurationError) as caught:
            await check_server(make_fake_info(info), parse_url(url), set())
        assert str(caught.value).startswith(f"{parse_url(url).describe()}: ")
        assert why in str(caught.value)


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("redis_version:7.2.4\nvalkey_version:9.1.2", "Valkey 9.1.2"),
        ("redis_version:7.2.4\nvalkey_version:9.1.0-rc1", "Valkey 9.1.0"),
        ("redis_version:255.255.255", "Redis 255.255.255"),
        ("redis_version:7.4.0\ndragonfly_version:df-v1.2", "Redis 7.4.0"),
    ],
)
async def test_versions_of_all_kinds(info: str, name: str) -> None:
    assert (await check_server(make_fake_info(info), parse_url("redis://a"), set())).name == name


async def test_a_cluster_node_named_as_a_single_server(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    assert f"use redis+cluster://{node.address}" in await get_error(node.url)
    assert (await check_url(cluster.url)).cluster


async def test_no_answer_is_no_answer(redis_binary: Binary) -> None:
    with servers.Server(redis_binary) as server:
        url = server.url
    with pytest.raises(BackendUnavailable, match="nothing listens"):
        await check_url(url)


# --- what an operator sees ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(valkey_binary(), *SAFE) as cluster:
        yield cluster


async def run_health_checks(url: str, clock: Clock | None = None) -> list[CheckResult]:
    async with open_send_command(url) as send:
        return await run_checks(send, parse_url(url), clock or SystemClock())


async def find_check(url: str, subject: str, clock: Clock | None = None) -> CheckResult:
    (found,) = [one for one in await run_health_checks(url, clock) if one.subject == subject]
    assert (found.advice == "") == (found.verdict == "good")
    assert "\n" not in found.text + found.advice
    return found


async def test_a_healthy_server(redis_binary: Binary) -> None:
    with servers.Server(redis_binary, *SAFE, maxmemory="300mb") as server:
        found = await run_health_checks(server.url)
    assert [one.subject for one in found] == [
        "server", "role", "durability", "snapshots", "eviction", "memory", "clients",
        "round trip", "clock",
    ]  # fmt: skip
    assert {one.verdict for one in found if one.subject != "round trip"} == {"good"}
    texts = {one.subject: one.text for one in found}
    assert texts["server"].startswith(f"{redis_binary.name}, up for 0.0 days")
    assert texts["role"] == "primary, without a replica"
    assert "synced each second" in texts["durability"]
    assert texts["memory"].endswith("of 300.0 MiB used")
    assert " ms, the median of 20" in texts["round trip"]


async def test_a_stock_server(default_server: servers.Server) -> None:
    found = await find_check(default_server.url, "durability")
    assert found.verdict == "warning"
    assert "every job since its last snapshot is lost" in found.text
    assert "CONFIG SET appendonly yes" in found.advice
    assert "no bound is set" in (await find_check(default_server.url, "memory")).text


async def test_a_file_synced_with_each_write(
    durable_server: servers.Server, change_setting: Callable[[str, str], object]
) -> None:
    change_setting("appendfsync", "always")
    assert (
        "nothing that was acknowledged is lost"
        in (await find_check(durable_server.url, "durability")).text
    )


async def test_little_memory_left(
    durable_server: servers.Server, change_setting: Callable[[str, str], object]
) -> None:
    change_setting("maxmemory-policy", "allkeys-lru")
    change_setting("maxmemory", "1mb")
    for subject in ("memory", "eviction"):
        assert (await find_check(durable_server.url, subject)).verdict == "warning"


async def test_a_save_that_failed(redis_binary: Binary) -> None:
    with servers.Server(redis_binary, "dbfilename gone.rdb") as server:
        (server.folder / "gone.rdb").mkdir()
        server.ask("BGSAVE")
        block_until(lambda: b"last_bgsave_status:err" in read_info(server), "the save fails")
        assert (await find_check(server.url, "snapshots")).verdict == "warning"


def read_info(server: servers.Server) -> bytes:
    """What it says of itself, raw."""
    with server.client() as client:
        client.set_response_callback("INFO", lambda reply, **_: reply)
        return cast("bytes", client.execute_command("INFO"))


async def test_a_clock_that_is_off(default_server: servers.Server) -> None:
    found = await find_check(default_server.url, "clock", FakeClock(SystemClock().now() - 60))
    assert found.verdict == "warning"
    assert "ahead of ours; it decides when jobs are due" in found.text
    assert (
        await find_check(default_server.url, "clock", FakeClock(SystemClock().now()))
    ).verdict == "good"


async def test_a_slow_round_trip_is_reported() -> None:
    clock = FakeClock()

    async def send(*command: Any) -> Any:
        if command == ("PING",):
            clock.advance(0.02)
        if command == ("TIME",):
            return [str(int(clock.now())).encode(), b"0"]
        return await make_fake_info("redis_version:8.0.2\nrole:master")(*command)

    (found,) = [
        one
        for one in await run_checks(send, parse_url("redis://a"), clock)
        if one.subject == "round trip"
    ]
    assert (found.verdict, found.text[:8]) == ("warning", "20.00 ms")


@pytest.mark.parametrize(
    ("info", "subject", "verdict", "text"),
    [
        ("role:slave\nmaster_host:a\nmaster_port:1", "role", "error", "a replica of a:1"),
        ("role:master\nconnected_slaves:2", "role", "good", "followed by 2"),
        ("connected_clients:9000\nmaxclients:10000", "clients", "warning", "9000 connected"),
        ("loading:1", "server", "error", "still reading its data"),
        ("aof_enabled:1\naof_last_write_status:err", "durability", "error", "cannot write"),
        ("aof_enabled:1\naof_last_bgrewrite_status:err", "durability", "warning", "grows without"),
    ],
)
async def test_problems_in_info_become_failed_checks(
    info: str, subject: str, verdict: str, text: str
) -> None:
    clock = FakeClock()

    async def send(*command: Any) -> Any:
        if command == ("TIME",):
            return [b"0", b"0"]
        return await make_fake_info(f"redis_version:8.0.2\n{info}")(*command)

    found = [
        one
        for one in await run_checks(send, parse_url("redis://a"), clock)
        if one.subject == subject
    ]
    assert [one.verdict for one in found] == [verdict]
    assert text in found[0].text


async def test_a_cluster_whole_and_not(cluster: Cluster) -> None:
    found = await find_check(cluster.url, "cluster")
    assert (found.verdict, found.text) == ("good", "whole, 3 nodes known")
    node = cluster.nodes[0]
    node.ask("CLUSTER", "DELSLOTS", 0)
    try:
        async with open_send_command(node.url) as send:
            *_, found = await run_checks(send, parse_url(node.url), SystemClock())
    finally:
        node.ask("CLUSTER", "ADDSLOTS", 0)
        cluster.settle()
    assert (found.subject, found.verdict) == ("cluster", "error")
