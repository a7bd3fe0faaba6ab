"""One program on each backend: only the URL differs."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from nimburion import Outbox, Processor, job
from tests.servers.server_kinds import RunningPostgres, RunningRedis


@job
async def send_receipt(order: int) -> str:
    return f"receipt for {order}"


async def test_memory(tmp_path: Path) -> None:
    await check_program(tmp_path, "memory://")


async def test_the_same_sqlite_file(tmp_path: Path) -> None:
    await check_program(tmp_path, f"sqlite:///{tmp_path}/app.db")


async def test_another_sqlite_file(tmp_path: Path) -> None:
    await check_program(tmp_path, f"sqlite:///{tmp_path}/jobs.db")


async def test_redis(tmp_path: Path, single_redis: RunningRedis) -> None:
    await check_program(tmp_path, single_redis.url)


async def test_postgresql(tmp_path: Path, postgres_server: RunningPostgres) -> None:
    await check_program(tmp_path, postgres_server.url)


async def check_program(folder: Path, url: str) -> None:
    """Take one order, and refuse another; the receipt of the first is sent once."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/app.db")
    processor = Processor(url, outbox=Outbox(engine))
    processor.register(send_receipt)
    assert processor.outbox is not None
    await processor.outbox.create_table()
    async with processor:
        async with AsyncSession(engine) as session:
            await session.execute(text("CREATE TABLE purchase (number INTEGER)"))
            await session.commit()
            await session.execute(text("INSERT INTO purchase VALUES (1)"))
            job_id = await processor.enqueue(send_receipt.job(1), connection=session)
            await session.commit()
            await session.execute(text("INSERT INTO purchase VALUES (2)"))
            await processor.enqueue(send_receipt.job(2), connection=session)
            await session.rollback()
        assert await processor.drain() == 1
        assert await processor.wait(job_id, timeout=10) == "receipt for 1"
        assert (await processor.outbox.read_lag()).jobs == 0
    await engine.dispose()
