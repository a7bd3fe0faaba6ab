"""A worker or a producer in a process of its own:

    python -m tests.crash.actor VERB FOLDER URL TERMS

With `CRASH_AT` in the environment it kills itself there, by SIGKILL. Only this file reads it; the
product knows nothing of it. Only the driver of its own backend is imported: that is most of what
its start costs.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import select
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from functools import partial, wraps
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

from nimburion.backends import open_backend
from nimburion.core.backend import Transactional
from nimburion.core.events import Event, SessionEnded, StaleSettlement
from nimburion.core.exchange import Reply
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.maintenance import Rescued
from nimburion.core.settings import Settings
from nimburion.core.settlement import Completed
from nimburion.core.transactions import CallerConnection
from nimburion.jobs import Context, Limit, Processor
from nimburion.jobs.client.client import send_jobs
from nimburion.jobs.outbox.outbox import Outbox
from nimburion.jobs.outbox.relay import OutboxRelay
from nimburion.jobs.worker.attempt.attempt_runner import AttemptRunner
from nimburion.jobs.worker.exchange.completer import Completer
from nimburion.scheduler import Scheduler
from nimburion.testing.contract.changing import make_due
from tests.crash import blocking, children
from tests.overridden import get_operation

if TYPE_CHECKING:
    from nimburion.backends.redis.connection.command_connection import (
        CommandConnection,
        CommandPart,
    )
    from nimburion.backends.redis.connection.protocol import RedisProtocol
    from nimburion.backends.redis.scripts import Script
    from nimburion.backends.sqlite.connection.database import Database

Answer = Any

DIARY = "diary.jsonl"
EFFECT = "INSERT INTO effect (job) VALUES ('{job}')"
"""What a job, or the one that enqueues it, writes beside it."""


def die() -> None:
    """End like a process that the kernel has killed."""
    os.kill(os.getpid(), signal.SIGKILL)


# Crash points


def install_crash_point(point: str, url: str) -> None:
    """Make this process, which works on that backend, die at that point."""
    kind, _, detail = point.partition(" ")
    points: dict[str, Callable[[], object]] = {
        "statement": lambda: _die_after_statement(detail),
        "script": lambda: _die_after_script(detail),
        "unheard": lambda: _die_before_reply(detail, url),
        "reserved": lambda: _die_after_call(
            url, "exchange", lambda reply, _: bool(reply.deliveries)
        ),
        "settled": lambda: _die_after_call(url, "exchange", _completes),
        "rescued": lambda: _die_after_call(
            url, "rescue", lambda rescued, _: bool(rescued.returned)
        ),
        "enqueued": lambda: _die_after_call(url, "enqueue", lambda *_: True),
        "made_due": lambda: _die_after_call(url, "change_jobs", lambda *_: True),
        "before": lambda: setattr(AttemptRunner, "perform", lambda *_: die()),
        "inside": lambda: None,  # the handler looks itself, and so for the next two
        "rows": lambda: None,
        "bought": lambda: None,
        "completed": lambda: _die_around_commit(url, before=True),
        "committed": lambda: _die_around_commit(url, before=False),
        "after": lambda: setattr(Completer, "settle", lambda *_: die()),
    }
    points[kind]()


def _delivers(reply: Reply, _: object) -> bool:
    return bool(reply.deliveries)


def _rescues(rescued: Rescued, _: object) -> bool:
    return bool(rescued.returned)


def _completes(_: object, args: tuple[Any, ...]) -> bool:
    return any(isinstance(one, Completed) for one in args[2])


def _die_after_call(url: str, name: str, when: Callable[[Any, tuple[Any, ...]], bool]) -> None:
    """The backend has committed, but nobody hears of it."""
    kind: Any = type(get_operation(open_backend(url), name).__self__)  # type: ignore[attr-defined]
    setattr(kind, name, _dying(getattr(kind, name), when))


def _die_around_commit(url: str, *, before: bool) -> None:
    """A handler's transaction is complete and not committed, or its worker never says so."""
    if "sqlite" in url:
        from nimburion.backends.sqlite.transactions import SQLiteOwnTransaction

        _replace_commit(SQLiteOwnTransaction, before=before)
    else:
        from nimburion.backends.postgres.transactions import PostgresOwnTransaction

        _replace_commit(PostgresOwnTransaction, before=before)


def _replace_commit(kind: Any, *, before: bool) -> None:
    kind.commit = _dying_at(kind.commit, before=before)


def _dying_at(original: Callable[..., Awaitable[None]], *, before: bool) -> Callable[..., Any]:
    async def commit(self: object) -> None:
        if not before:
            await original(self)
        die()

    return commit


def _dying(
    original: Callable[..., Awaitable[Any]], when: Callable[[Any, tuple[Any, ...]], bool]
) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def call(self: object, *args: Any, **kwargs: Any) -> Answer:
        answer = await original(self, *args, **kwargs)
        if when(answer, args):
            die()
        return answer

    return call


def _has_matched(cursor: sqlite3.Cursor) -> bool:
    """Return whether a statement found rows. One with RETURNING counts them only when read."""
    if cursor.rowcount == 0 and cursor.description is not None:
        return bool(cursor.fetchall())
    return cursor.rowcount != 0


def _die_after_statement(name: str) -> None:
    """In the middle of a transaction of SQLite."""
    from nimburion.backends.sqlite.connection.database import Database

    original = Database.run

    def run(self: Database, statement: str, *values: object) -> Answer:
        cursor = original(self, statement, *values)
        if statement == name and _has_matched(cursor):
            die()
        return cursor

    Database.run = run  # type: ignore[assignment, method-assign]


def _die_after_script(name: str) -> None:
    """Behind one script of several that a call to Redis takes."""
    _around_script(name, lambda _: None, die)


def _die_before_reply(what: str, url: str) -> None:
    """With a request on its way to the server, before its answer is read."""
    if "postgres" in url:
        _die_before_postgres_reply(what)
    else:
        _die_before_redis_reply(what)


def _die_before_redis_reply(what: str) -> None:
    from nimburion.backends.redis.connection.protocol import RedisProtocol

    name, fits = _REQUESTS[what]

    def die_with_the_next_request(arguments: Sequence[CommandPart]) -> None:
        if fits(arguments):
            RedisProtocol.request = _send_and_die  # type: ignore[assignment, method-assign]

    _around_script(name, die_with_the_next_request, lambda: None)


def _send_and_die(wire: RedisProtocol, packed: bytes, *_: object) -> None:
    wire.send(packed)
    die()


_SETTLEMENTS = 6
"""Where they stand among the arguments of an exchange."""

_REQUESTS: dict[str, tuple[str, Callable[[Sequence[CommandPart]], bool]]] = {
    "enqueue": ("enqueue", lambda _: True),
    "make_due": ("change_jobs", lambda _: True),
    "reserve": ("exchange", lambda arguments: not arguments[_SETTLEMENTS]),
    "settle": ("exchange", lambda arguments: bool(arguments[_SETTLEMENTS])),
}


def _around_script(
    name: str, before: Callable[[Sequence[CommandPart]], None], after: Callable[[], None]
) -> None:
    from nimburion.backends.redis.connection.command_connection import CommandConnection

    original = CommandConnection.run_script

    async def run(
        self: CommandConnection,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[CommandPart],
        **more: Any,
    ) -> list[Any]:
        if script.name != name:
            return await original(self, script, keys, arguments, **more)
        await self.execute("SCRIPT", "LOAD", script.text)  # so that the first try is applied
        before(arguments)
        replies = await original(self, script, keys, arguments, **more)
        after()
        return replies

    CommandConnection.run_script = run  # type: ignore[method-assign]


_CALL_CRASH_POINTS: dict[str, tuple[str, Callable[[Sequence[Any]], bool]]] = {
    "enqueue": ("enqueue_1", lambda _: True),
    "make_due": ("change_jobs_1", lambda _: True),
    "reserve": ("exchange_1", lambda arguments: arguments[_SEQS] is None),
    "settle": ("exchange_1", lambda arguments: arguments[_SEQS] is not None),
    "rescue": ("rescue_jobs_1", lambda _: True),
}
_SEQS = 4
"""Where the jobs that are settled stand among the arguments of an exchange."""


def _die_before_postgres_reply(what: str) -> None:
    from asyncpg.prepared_stmt import PreparedStatement

    function, fits = _CALL_CRASH_POINTS[what]
    original = PreparedStatement.fetch

    async def fetch(self: Any, *arguments: Any, **more: Any) -> Answer:
        query = self.get_query().replace('"', "").replace("_pooled", "")
        if f"{function}(" in query and fits(arguments):
            transport = self._connection._transport
            transport.pause_reading()
            _die_on_reply(transport.get_extra_info("socket"))
        return await original(self, *arguments, **more)

    PreparedStatement.fetch = fetch  # type: ignore[method-assign]


def _die_on_reply(protocol: Any) -> None:
    """Nobody reads there, so that what comes stays where it is."""
    if select.select([protocol], [], [], 0.0)[0]:
        die()
    asyncio.get_running_loop().call_later(0.001, _die_on_reply, protocol)


# What it does


class EventLog:
    """One line for each thing that happened, in the order of all processes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / DIARY

    def note(self, what: str, **more: object) -> None:
        """Append a line, in one write."""
        line = json.dumps({"what": what, "pid": os.getpid(), "at": time.monotonic(), **more})
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


async def run_worker(folder: Path, url: str, events: EventLog, options: dict[str, Any]) -> None:
    """Run jobs until stopped; with the option `outbox`, relay them too."""
    outbox = make_outbox(folder) if options.pop("outbox", False) else None
    processor = Processor(open_backend(url), Settings(**options), outbox=outbox)
    handlers = Handlers(folder, events, processor.settings.session_ttl)
    handlers.register(processor)
    children.register(processor, handlers.note)
    blocking.register(processor, handlers.note)
    Scheduler(processor)  # one more service that starts and stops with the worker

    def hear(event: Event) -> None:
        if isinstance(event, SessionEnded | StaleSettlement):
            events.note(type(event).__name__, how=getattr(event, "how", ""))

    processor.events.subscribe(hear)
    async with processor:
        await processor.run(owns_process=True)
    events.note("left")


async def run_producer(_: Path, url: str, events: EventLog, options: dict[str, Any]) -> None:
    """Enqueue jobs by id."""
    backend = open_backend(url)
    await backend.open()
    payload, more = b"{}", JobOptions()
    if options["replaces"]:
        payload = b'{"n":2}'
        more = JobOptions(unique_key="draft", on_duplicate="replace", max_wait=options["max_wait"])
    name, after = options["name"], options["after"]
    jobs = [
        NewJob(one, name, "default", payload, after=after, options=more) for one in options["ids"]
    ]
    await backend.producing.enqueue(jobs)
    events.note("enqueued")
    await backend.close()


async def run_operator(_: Path, url: str, events: EventLog, options: dict[str, Any]) -> None:
    """Make jobs due by id."""
    backend = open_backend(url)
    await backend.open()
    await make_due(backend, options["ids"])
    events.note("made due")
    await backend.close()


async def run_buyer(_: Path, url: str, events: EventLog, options: dict[str, Any]) -> None:
    """Write a row and enqueue a job, in one transaction of its own."""
    backend = open_backend(url)
    await backend.open()
    crash_at = os.environ.get("CRASH_AT")
    with closing(connect(url)) as connection:
        connection.execute(EFFECT.format(job="quick-0"))
        jobs = [NewJob("quick-0", "quick", "default", b"{}")]
        await cast("Transactional", backend.producing).enqueue_in(
            CallerConnection(connection), jobs
        )
        if crash_at == "rows":
            die()
        connection.commit()
        if crash_at == "bought":
            die()
    await backend.close()


def make_outbox(folder: Path) -> Outbox:
    """The outbox in the database of the application, a file beside those of the jobs."""
    return Outbox(f"sqlite:///{folder}/app.db", interval=0.05)


async def run_shopper(folder: Path, url: str, _: EventLog, options: dict[str, Any]) -> None:
    """Write a row and enqueue its job through the outbox, in one transaction."""
    crash_at, job_id = os.environ.get("CRASH_AT"), options["id"]
    async with Processor(open_backend(url), outbox=make_outbox(folder)) as processor:
        with closing(sqlite3.connect(folder / "app.db")) as connection:
            connection.execute(EFFECT.format(job=job_id))
            await processor.enqueue_raw("quick", {}, id=job_id, connection=connection)
            if crash_at == "rows":
                die()
            connection.commit()
        if crash_at == "bought":
            die()


async def run_relayer(folder: Path, url: str, _: EventLog, __: dict[str, Any]) -> None:
    """Relay what is in the outbox, and run nothing."""
    async with Processor(open_backend(url), outbox=make_outbox(folder)) as processor:
        assert processor.outbox is not None
        send = partial(send_jobs, processor)
        await OutboxRelay(processor.outbox, send, processor.clock, Random(0)).relay()


def connect(url: str) -> Any:
    """A connection such as applications have."""
    if "sqlite" in url:
        from nimburion.backends.sqlite.connection.path import parse_url

        return sqlite3.connect(parse_url(url))
    import psycopg

    return psycopg.connect(url)


class Handlers:
    """They note when they begin and end. On the first delivery of a job (fence 1) some never end,
    so that something must happen to the worker; on later ones all are quick."""

    def __init__(self, folder: Path, events: EventLog, ttl: float) -> None:
        self._folder = folder
        self._diary = events
        self._ttl = ttl
        self._never = threading.Event()

    def register(self, processor: Processor) -> None:
        """Give them to a processor, each under its own name."""
        for handler in (
            *(self.quick, self.long, self.hanging, self.stubborn, self.blocking),
            *(self.paying, self.killing, self.interrupting, self.exiting, self.cancelling),
            *(self.halting, self.gathering, self.terminating, self.bulky),
        ):
            processor.register(handler.__name__, handler)
        limits = [Limit(1, key="tenant", rate="1000/s", burst=1000), Limit(3, name="gateway")]
        processor.register("keyed", self.keyed, limits=limits)

    async def quick(self, ctx: Context, _: bytes) -> int:
        """Only begins and ends."""
        self.note(ctx, "start")
        if os.environ.get("CRASH_AT") == "inside":
            die()
        return self.note(ctx, "end")

    async def keyed(self, ctx: Context, _: bytes) -> int:
        """Spends some units of its rate; its limits count for each tenant and in all."""
        self.note(ctx, "start")
        ctx.spend(3)
        if os.environ.get("CRASH_AT") == "inside":
            die()
        return self.note(ctx, "end")

    async def long(self, ctx: Context, _: bytes) -> int:
        """Waits until the test lets this delivery go."""
        self.note(ctx, "start")
        while not (self._folder / f"go-{ctx.fence}").exists():
            await asyncio.to_thread(self._never.wait, 0.01)
        return self.note(ctx, "end")

    async def paying(self, ctx: Context, _: bytes) -> None:
        """Writes a row in the transaction that completes its job."""
        self.note(ctx, "start")
        async with ctx.transaction() as connection:
            cursor = connection.execute(EFFECT.format(job=ctx.job_id))
            if inspect.isawaitable(cursor):
                await cursor
            if os.environ.get("CRASH_AT") == "rows":
                die()
        self.note(ctx, "end")

    async def bulky(self, ctx: Context, data: bytes) -> str:
        """Returns so many bytes as its payload says."""
        self.note(ctx, "start")
        size = int(json.loads(data)["result"])
        self.note(ctx, "end")
        return "r" * size

    async def hanging(self, ctx: Context, _: bytes) -> int:
        """Waits for what never comes."""
        self.note(ctx, "start")
        if ctx.fence == 1:
            await asyncio.Event().wait()
        return self.note(ctx, "end")

    def stubborn(self, ctx: Context, _: bytes) -> int:
        """The same on a thread, which nobody can interrupt."""
        self.note(ctx, "start")
        if ctx.fence == 1:
            self._never.wait()
        return self.note(ctx, "end")

    async def blocking(self, ctx: Context, _: bytes) -> int:
        """Holds the event loop for three times the time to live."""
        self.note(ctx, "start")
        self._never.wait(3 * self._ttl)
        return self.note(ctx, "end")

    async def killing(self, ctx: Context, _: bytes) -> None:
        """Kills its worker, each time."""
        self.note(ctx, "start")
        die()

    async def interrupting(self, ctx: Context, _: bytes) -> None:
        """Raises what Python raises at Ctrl-C."""
        self.note(ctx, "start")
        raise KeyboardInterrupt

    async def exiting(self, ctx: Context, _: bytes) -> None:
        """Ends the event loop from a task of its own."""
        self.note(ctx, "start")
        await asyncio.create_task(_exit())

    async def cancelling(self, ctx: Context, _: bytes) -> None:
        """Cancels every task of its worker."""
        self.note(ctx, "start")
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.Event().wait()

    async def gathering(self, ctx: Context, _: bytes) -> None:
        """Cancels every other task of its worker, and waits for them."""
        self.note(ctx, "start")
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def terminating(self, ctx: Context, _: bytes) -> None:
        """Sends its own worker the signal to stop."""
        self.note(ctx, "start")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    async def halting(self, ctx: Context, _: bytes) -> None:
        """Stops the event loop of its worker."""
        self.note(ctx, "start")
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()

    def note(self, ctx: Context, what: str, **more: object) -> int:
        """Note what happens to a job; the fence of its lease."""
        self._diary.note(what, job=ctx.job_id, fence=ctx.fence, **more)
        return ctx.fence


async def _exit() -> None:
    sys.exit(3)


def choose_loop(is_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of uvloop's event loops, or None for asyncio's own."""
    if not is_uvloop:
        return None
    import uvloop

    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


def main() -> None:
    """Do what the command line says."""
    logging.basicConfig(
        level=logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(process)d %(levelname)s:%(name)s:%(message)s",
    )
    verb, folder, url, options = sys.argv[1:]
    if "CRASH_AT" in os.environ:
        install_crash_point(os.environ["CRASH_AT"], url)
    roles = {
        "worker": run_worker,
        "producer": run_producer,
        "operator": run_operator,
        "buyer": run_buyer,
        "shopper": run_shopper,
        "relayer": run_relayer,
    }
    run = roles[verb]
    chosen = json.loads(options)
    with asyncio.Runner(loop_factory=choose_loop(chosen.pop("uvloop", False))) as runner:
        runner.run(run(Path(folder), url, EventLog(Path(folder)), chosen))


if __name__ == "__main__":
    main()
