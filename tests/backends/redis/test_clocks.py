"""Only the server's clock counts: a worker's may stand anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimburion.backends.redis import RedisBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.core.timing.clock import SystemClock
from tests.servers.server_kinds import BINARIES, RunningRedis
from tests.waiting import wait_until

HOUR = 3600.0
MARGIN = 10.0
"""Seconds in which a test is done, however busy the machine."""

pytestmark = pytest.mark.parametrize("redis_server", BINARIES, indirect=True)


def set_clocks(monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    """Let the clocks of this host be wrong by so many seconds."""
    for name in ("now", "monotonic"):
        right = getattr(SystemClock, name)
        monkeypatch.setattr(SystemClock, name, lambda self, right=right: right(self) + off)


@pytest.fixture(params=[-2 * HOUR, 2 * HOUR], ids=["behind", "ahead"])
def _wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clocks(monkeypatch, request.param)


@pytest.fixture
async def backend(redis_server: RunningRedis) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(redis_server.url)
    await backend.open()
    yield backend
    await backend.close()


def server_time(server: RunningRedis) -> float:
    seconds, _ = server.ask("TIME")
    return float(seconds)


@pytest.mark.usefixtures("_wrong")
async def test_times_are_those_of_the_server(
    backend: RedisBackend, redis_server: RunningRedis
) -> None:
    await backend.producing.enqueue([NewJob("a", "mail", "default", b"{}")])
    record = await backend.reads.get_job("a")
    assert abs(record.created_at - server_time(redis_server)) < MARGIN
    assert record.due == record.created_at


@pytest.mark.usefixtures("_wrong")
async def test_a_delay_ends_on_the_clock_of_the_server(backend: RedisBackend) -> None:
    due = NewJob("due", "mail", "default", b"{}")
    await backend.producing.enqueue([due, NewJob("later", "mail", "default", b"{}", after=HOUR)])
    assert (await backend.consuming.promote(10)).count == 0
    session = Session(id="0" * 32, names=("mail",))
    await backend.consuming.open_session(session)
    reply = await backend.consuming.exchange(
        session.id, 1, [], ReserveRequest(5, (Lane("default", "mail"),))
    )
    assert [delivery.lease.job_id for delivery in reply.deliveries] == ["due"]
    assert (await backend.reads.get_job("later")).state is State.SCHEDULED


async def test_no_session_expires_by_the_clock_of_another(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(id="0" * 32)
    await backend.consuming.open_session(session)
    set_clocks(monkeypatch, 2 * HOUR)
    await backend.consuming.rescue(10, max_lost=3)
    await backend.consuming.heartbeat(session.id)
    assert [one.id for one in await backend.reads.list_sessions()] == [session.id]


async def test_a_dead_worker_is_noticed_after_the_clock_was_set_back(
    backend: RedisBackend, redis_server: RunningRedis
) -> None:
    """Until then its session would live for as long as the clock was set back."""
    for number in range(3):
        await backend.consuming.open_session(Session(id=f"{number}" * 32, ttl=1.0))
    key = "{nimburion}:session_expiry"
    for number in range(3):
        redis_server.ask("ZINCRBY", key, f"{HOUR * 1e6:.0f}", f"{number}" * 32)
    await backend.consuming.rescue(10, max_lost=3)
    await backend.consuming.heartbeat("0" * 32)  # the rescue has ended none that lives
    assert len(await backend.reads.list_sessions()) == 3

    async def has_ended() -> bool:
        await backend.consuming.rescue(10, max_lost=3)
        return not await backend.reads.list_sessions()

    await wait_until(has_ended, "the sessions expire in their time")
