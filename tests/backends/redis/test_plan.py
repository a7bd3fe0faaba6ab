"""A dry run of `migrate` only reads; a script that fails while it decides has written nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.core.errors import BackendError, ConfigurationError, FormatMismatch
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.session import Session
from nimburion.testing import FakeClock
from tests.servers import Binary, RunningRedis, Server

READER = "reader on >pw ~* &* +@connection +@read +info +config|get +cluster"
"""A user who may look at everything and change nothing."""


def dump(server: Server) -> dict[bytes, bytes]:
    """All keys with their content."""
    return {key: server.ask("DUMP", key) for key in server.ask("KEYS", "*")}


async def plan(url: str) -> list[str]:
    backend = RedisBackend(url)
    try:
        return await backend.migrate(dry_run=True)
    finally:
        await backend.close()


async def test_planning_an_empty_server_leaves_it_empty(redis_server: RunningRedis) -> None:
    before = redis_server.ask("DBSIZE")
    backend = RedisBackend(redis_server.url)
    try:
        assert await backend.migrate(dry_run=True) == ["format 1: namespace 'nimburion'"]
        assert redis_server.ask("DBSIZE") == before == 0
        assert await backend.migrate() == ["format 1: namespace 'nimburion'"]
        assert redis_server.ask("DBSIZE") > 0
        assert await backend.migrate(dry_run=True) == []
        assert await backend.migrate() == []
    finally:
        await backend.close()


async def test_planning_sends_no_command_that_writes(valkey: Server) -> None:
    """No script either: as a user of whom the server keeps such commands."""
    valkey.empty()
    valkey.ask("ACL", "SETUSER", *READER.split())
    valkey.ask("ACL", "LOG", "RESET")
    try:
        url = valkey.url_for("reader", "pw")
        assert await plan(url) == ["format 1: namespace 'nimburion'"]
        assert dump(valkey) == {}
        backend = RedisBackend(valkey.url)
        await backend.open()
        await backend.close()
        before = dump(valkey)
        assert await plan(url) == []
        assert dump(valkey) == before
        refused = RedisBackend(url)
        with pytest.raises(ConfigurationError, match="this user may not"):
            await refused.open()
    finally:
        valkey.ask("ACL", "DELUSER", "reader")


async def test_planning_wakes_no_worker(valkey: Server) -> None:
    """It writes and sends nothing."""
    valkey.empty()
    backend = RedisBackend(valkey.url)
    await backend.open()
    await backend.close()
    with valkey.client() as client, client.pubsub() as listener:
        listener.subscribe("{nimburion}:notify")
        assert listener.get_message(timeout=5.0) is not None
        assert await plan(valkey.url) == []
        valkey.ask("PUBLISH", "{nimburion}:notify", "the end")
        heard = listener.get_message(timeout=5.0)
    assert heard is not None
    assert heard["data"] == b"the end"


async def test_planning_refuses_a_newer_format(valkey: Server) -> None:
    valkey.empty()
    valkey.ask("HSET", "{nimburion}:meta", "format", 99)
    before = dump(valkey)
    with pytest.raises(FormatMismatch, match="has format 99"):
        await plan(valkey.url)
    assert dump(valkey) == before
    valkey.empty()


async def test_planning_refuses_a_server_that_will_not_do(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        with pytest.raises(ConfigurationError, match="require_durable, but"):
            await plan(f"{server.url}?require_durable=true")
        assert dump(server) == {}


async def leased(backend: RedisBackend, jobs: Sequence[NewJob], session: str) -> None:
    """Jobs that a session holds."""
    await backend.producing.enqueue(jobs)
    await backend.consuming.open_session(Session(id=session))
    lanes = (Lane("default", "mail"),)
    reply = await backend.consuming.exchange(
        session, 1, [], ReserveRequest(lanes=lanes, total=len(jobs))
    )
    assert len(reply.deliveries) == len(jobs)


@pytest.mark.parametrize("max_lost", [1, 3], ids=["failing", "returning"])
async def test_a_rescue_that_fails_while_it_decides_writes_nothing(
    max_lost: int, valkey: Server
) -> None:
    """The record of its second job is damaged: its first job and the session stay as they were."""
    valkey.empty()
    clock = FakeClock()
    backend = RedisBackend(valkey.url, clock=clock)
    await backend.open()
    try:
        jobs = [
            NewJob(one, "mail", "default", b"{}", options=JobOptions(unique_key=one))
            for one in ("a", "b")
        ]
        await leased(backend, jobs, "dying")
        field = max(valkey.ask("HKEYS", "{nimburion}:lease"))
        valkey.ask("HSET", "{nimburion}:lease", field, "damaged")
        clock.advance(1000.0)
        before = dump(valkey)
        with pytest.raises(BackendError):
            await backend.consuming.rescue(10, max_lost=max_lost)
        assert dump(valkey) == before
    finally:
        await backend.close()
        valkey.empty()
