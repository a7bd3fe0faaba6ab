"""The minimum cost of a step: the scene `minimum` of `dev.py bench flows`.

Runs await steps, one after another. A batcher stores the records of all runs that wait by one
group write, and then lets these runs continue. There is no lease, no journal and no engine. So no
design in which a record is stored before its step returns can cost less in this process.

One group write is, by backend:

- memory: an entry in a dictionary.
- SQLite: one `executemany` in a transaction, on a thread that writes.
- Valkey: one command `HSET` with a field for each record.
- PostgreSQL: one `INSERT ... SELECT FROM unnest(...)`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from queue import SimpleQueue
from threading import Thread
from urllib.parse import unquote, urlsplit

import asyncpg
import msgspec

from benchmarks.limits import read_cpu

STEPS = 10
"""The steps of one run, as in the scene `step`."""

Record = tuple[int, int, bytes]
"""The run, the number of the step, and its body."""
Write = Callable[[list[Record]], Awaitable[object]]

_encode = msgspec.json.Encoder().encode


class Batcher:
    """Stores the records of all steps that wait, one group after another."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._records: list[Record] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._woken = asyncio.Event()

    def store(self, record: Record) -> asyncio.Future[None]:
        """Store a record with the next group; return what is done when it is stored."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._records.append(record)
        self._waiting.append(future)
        self._woken.set()
        return future

    async def run(self) -> None:
        """Write groups until this task is cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            records, self._records = self._records, []
            waiting, self._waiting = self._waiting, []
            await self._write(records)
            for future in waiting:
                future.set_result(None)
            await asyncio.sleep(0)  # the next steps of these runs join the next group


async def perform_runs(batcher: Batcher, numbers: list[int]) -> None:
    """Perform runs, one after another, each with `STEPS` steps."""
    while numbers:
        run = numbers.pop()
        for number in range(STEPS):
            body = _encode({"kind": "step", "key": str(number), "value": number})
            await batcher.store((run, number, body))


async def measure(url: str, tasks: int, runs: int, server: int | None) -> dict[str, float]:
    """Return the CPU time of one step in microseconds. `tasks` runs step side by side."""
    async with AsyncExitStack() as stack:
        batcher = Batcher(await _open(url, stack))
        writing = asyncio.create_task(batcher.run())
        numbers = [*range(runs)]
        began = time.process_time() + read_cpu(server)
        await asyncio.gather(*(perform_runs(batcher, numbers) for _ in range(tasks)))
        ended = time.process_time() + read_cpu(server)
        writing.cancel()
    return {"run": (ended - began) / runs / STEPS * 1e6}


async def _open(url: str, stack: AsyncExitStack) -> Write:
    """Return what stores a group of records in the backend of a URL."""
    kind = url.partition(":")[0]
    if kind == "memory":
        return _write_to_memory({})
    if kind == "sqlite":
        return _open_sqlite(url.removeprefix("sqlite:///"), stack)
    if kind == "postgresql":
        return await _open_postgres(url, stack)
    return await _open_redis(url, stack)


def _write_to_memory(kept: dict[tuple[int, int], bytes]) -> Write:
    async def write(records: list[Record]) -> None:
        for run, number, body in records:
            kept[run, number] = body

    return write


def _open_sqlite(path: str, stack: AsyncExitStack) -> Write:
    loop = asyncio.get_running_loop()
    calls: SimpleQueue[tuple[list[Record], asyncio.Future[None]] | None] = SimpleQueue()

    def serve() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(
            "CREATE TABLE step (run INTEGER, number INTEGER, body BLOB, PRIMARY KEY (run, number))"
            " WITHOUT ROWID"
        )
        while (call := calls.get()) is not None:
            records, future = call
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO step VALUES (?, ?, ?)", records)
            connection.execute("COMMIT")
            loop.call_soon_threadsafe(future.set_result, None)
        connection.close()

    def stop() -> None:
        calls.put(None)
        thread.join()

    def write(records: list[Record]) -> Awaitable[None]:
        future: asyncio.Future[None] = loop.create_future()
        calls.put((records, future))
        return future

    thread = Thread(target=serve)
    thread.start()
    stack.callback(stop)
    return write


async def _open_postgres(url: str, stack: AsyncExitStack) -> Write:
    connection = await asyncpg.connect(url)
    stack.push_async_callback(connection.close)
    await connection.execute(
        "CREATE TABLE step (run bigint, number int, body bytea, PRIMARY KEY (run, number))"
    )
    insert = await connection.prepare(
        "INSERT INTO step SELECT * FROM unnest($1::bigint[], $2::int[], $3::bytea[])"
    )

    def write(records: list[Record]) -> Awaitable[object]:
        runs, numbers, bodies = zip(*records, strict=True)
        return insert.fetch(runs, numbers, bodies)

    return write


async def _open_redis(url: str, stack: AsyncExitStack) -> Write:
    parts = urlsplit(url)
    if parts.hostname:
        opened = asyncio.open_connection(parts.hostname, parts.port or 6379)
    else:
        opened = asyncio.open_unix_connection(unquote(parts.path))
    reader, writer = await opened
    stack.callback(writer.close)
    return partial(_write_to_redis, reader, writer)


async def _write_to_redis(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, records: list[Record]
) -> None:
    parts = [b"*%d\r\n$4\r\nHSET\r\n$4\r\nstep\r\n" % (2 + 2 * len(records))]
    for run, number, body in records:
        field = b"%d.%d" % (run, number)
        parts.append(b"$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(field), field, len(body), body))
    writer.write(b"".join(parts))
    reply = await reader.readline()
    if not reply.startswith(b":"):
        raise RuntimeError(reply.decode())
