"""Limits that are changed at run time, more than once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.backends import open_backend
from nimburion.jobs import Limit, Processor
from tests.servers import RunningPostgres, RunningRedis

pytestmark = pytest.mark.regression


async def check_a_limit_is_changed_twice(url: str) -> None:
    """Change a shared limit as a whole, and one of its keys; later a job has its name."""
    async with Processor(open_backend(url)) as processor:

        @processor.job(limits=[Limit(1, key="customer", name="shared")])
        async def mail(customer: str) -> None: ...

        await processor.start()
        for most in (2, 3, 4):
            await processor.limits.change("shared", concurrency=most)
        await processor.limits.change("shared", rate="5/s")
        await processor.limits.change("shared", concurrency=5, key="acme")
        (shared,) = await processor.backend.reads.list_limits(name="shared")
        changes = {one.key: one for one in shared.changes}
        assert (changes[None].concurrency, changes["acme"].concurrency) == (4, 5)
        await processor.enqueue_raw("shared", b"{}")  # now a job has the name too
        assert (await processor.limits.change("shared", concurrency=2)).name == "shared"


async def test_a_whole_limit_by_key_is_changed_twice_in_memory() -> None:
    await check_a_limit_is_changed_twice("memory://")


async def test_a_whole_limit_by_key_is_changed_twice_on_sqlite(tmp_path: Path) -> None:
    await check_a_limit_is_changed_twice(f"sqlite:///{tmp_path}/jobs.db")


async def test_a_whole_limit_by_key_is_changed_twice_on_redis(redis_server: RunningRedis) -> None:
    await check_a_limit_is_changed_twice(redis_server.url)


async def test_a_whole_limit_by_key_is_changed_twice_on_postgresql(
    clean_postgres: RunningPostgres,
) -> None:
    await check_a_limit_is_changed_twice(clean_postgres.url)
