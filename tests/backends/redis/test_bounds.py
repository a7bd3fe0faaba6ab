"""The bounds of numbers that records hold in a few bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.core.errors import BackendFull
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.testing import FakeClock
from tests.servers.server_kinds import BINARIES, RunningRedis

LAST = (1 << 32) - 2
COUNTERS = "{nimburion}:counters"
USED_UP = r"all 4,294,967,294 numbers of %s are used; .* another namespace \(\?namespace=NAME\)$"
LOST_AT = 4 + 4 + 16 + 8 + 8 + 1 + 4
"""Where the losses stand in a lease; see record_format.lua."""

pytestmark = pytest.mark.parametrize("redis_server", BINARIES, indirect=True)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def backend(redis_server: RunningRedis, clock: FakeClock) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(redis_server.url, clock=clock)
    await backend.open()
    yield backend
    await backend.close()


async def reserve(backend: RedisBackend, session: Session, number: int) -> list[str]:
    lanes = tuple(Lane("q", name) for name in session.names)
    reply = await backend.consuming.exchange(session.id, number, [], ReserveRequest(9, lanes))
    return sorted(f"{each.name}: {each.lease.job_id}" for each in reply.deliveries)


async def test_a_lane_after_the_last_number_is_refused(
    backend: RedisBackend, redis_server: RunningRedis
) -> None:
    await backend.producing.enqueue([NewJob("a", "first", "q", b"{}")])
    redis_server.ask("HSET", COUNTERS, "lane", str(LAST - 1))
    await backend.producing.enqueue([NewJob("b", "last", "q", b"{}")])
    with pytest.raises(BackendFull, match=USED_UP % "lanes"):
        await backend.producing.enqueue(
            [NewJob("c", "first", "q", b"{}"), NewJob("d", "more", "q", b"{}")]
        )
    session = Session(id="0" * 32, ttl=60.0, names=("first", "last", "more"))
    await backend.consuming.open_session(session)
    assert await reserve(backend, session, 1) == ["first: a", "last: b"]


async def test_a_session_after_the_last_number_is_refused(
    backend: RedisBackend, redis_server: RunningRedis
) -> None:
    redis_server.ask("HSET", COUNTERS, "session", str(LAST))
    with pytest.raises(BackendFull, match=USED_UP % "sessions"):
        await backend.consuming.open_session(Session(id="0" * 32, ttl=60.0))
    assert await backend.reads.list_sessions() == []


async def test_a_job_fails_at_the_most_losses_that_its_record_can_count(
    backend: RedisBackend, redis_server: RunningRedis, clock: FakeClock
) -> None:
    """With one more, the count would begin again at 0."""
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    for number, losses in ((1, 0), (2, (1 << 16) - 2)):
        session = Session(id=f"{number:032x}", ttl=60.0, names=("n",))
        await backend.consuming.open_session(session)
        assert await reserve(backend, session, 1) == ["n: a"]
        if losses:
            (field,) = redis_server.ask("HKEYS", "{nimburion}:lease")
            lease = redis_server.ask("HGET", "{nimburion}:lease", field)
            changed = lease[:LOST_AT] + losses.to_bytes(2, "big") + lease[LOST_AT + 2 :]
            redis_server.ask("HSET", "{nimburion}:lease", field, changed)
        clock.advance(60.0)
        failed = (await backend.consuming.rescue(10, max_lost=1_000_000)).failed
        assert failed == (["a"] if losses else [])
    record = await backend.reads.get_job("a")
    assert (record.state, record.lost) == (State.FAILED, (1 << 16) - 1)
