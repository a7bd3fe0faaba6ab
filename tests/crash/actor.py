"""A worker or a producer in a process of its own:

    python -m tests.crash.actor VERB FOLDER URL TERMS

With `CRASH_AT` in the environment it kills itself there, by SIGKILL. Only this file reads it; the
product knows nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from nimburion.backends import open_backend
from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.connecting import Link
from nimburion.backends.redis import RedisBackend, line
from nimburion.backends.redis.line import Line, Part
from nimburion.backends.redis.scripts import Script
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.database import Database
from nimburion.core.events import Event, SessionEnded, StaleSettlement
from nimburion.core.job import NewJob
from nimburion.core.settings import Settings
from nimburion.core.settlement import Completed
from nimburion.jobs import Context, Processor
from nimburion.jobs.attempt import Attempts
from nimburion.jobs.conveyor import Conveyor

Answer = Any

DIARY = "diary.jsonl"


def die() -> None:
    """End like a process that the kernel has killed."""
    os.kill(os.getpid(), signal.SIGKILL)


# Crash points


def arm(point: str) -> None:
    """Make this process die at that point."""
    kind, _, detail = point.partition(" ")
    {
        "statement": lambda: _die_after_statement(detail),
        "script": lambda: _die_after_script(detail),
        "unheard": lambda: _die_unheard(detail),
        "unread": lambda: _die_unread(detail),
        "reserved": lambda: _die_after_call("exchange", lambda reply, _: bool(reply.deliveries)),
        "settled": lambda: _die_after_call("exchange", lambda _, args: _completes(args)),
        "rescued": lambda: _die_after_call("rescue", lambda rescued, _: bool(rescued.returned)),
        "enqueued": lambda: _die_after_call("enqueue", lambda *_: True),
        "before": lambda: setattr(Attempts, "perform", lambda *_: die()),
        "inside": lambda: None,  # the handler looks itself
        "after": lambda: setattr(Conveyor, "settle", lambda *_: die()),
    }[kind]()


def _completes(args: tuple[Any, ...]) -> bool:
    return any(isinstance(one, Completed) for one in args[2])


def _die_after_call(name: str, when: Callable[[Any, tuple[Any, ...]], bool]) -> None:
    """The store has committed, but nobody hears of it."""
    for store in (SQLiteBackend, RedisBackend, PostgresBackend):
        setattr(store, name, _dying(getattr(store, name), when))


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


def _die_after_statement(name: str) -> None:
    """In the middle of a transaction of SQLite."""
    original = Database.run

    def run(self: Database, statement: str, *values: object) -> Answer:
        cursor = original(self, statement, *values)
        if statement == name and cursor.rowcount != 0:
            die()
        return cursor

    Database.run = run  # type: ignore[assignment, method-assign]


def _die_after_script(name: str) -> None:
    """Behind one script of several that a call to Redis takes."""
    _around_script(name, lambda _: None, die)


def _die_unheard(what: str) -> None:
    """With a request on its way to Redis, before its answer is read."""
    name, fits = _REQUESTS[what]

    def die_with_the_next_request(arguments: Sequence[Part]) -> None:
        if fits(arguments):
            line._replies = lambda *_: die()  # type: ignore[assignment]

    _around_script(name, die_with_the_next_request, lambda: None)


_SETTLEMENTS = 6
"""Where they stand among the arguments of an exchange."""

_REQUESTS: dict[str, tuple[str, Callable[[Sequence[Part]], bool]]] = {
    "enqueue": ("enqueue", lambda _: True),
    "reserve": ("exchange", lambda arguments: not arguments[_SETTLEMENTS]),
    "settle": ("exchange", lambda arguments: bool(arguments[_SETTLEMENTS])),
}


_CALLS: dict[str, tuple[str, Callable[[Sequence[Any]], bool]]] = {
    "enqueue": ("enqueue_", lambda _: True),
    "reserve": ("exchange_", lambda arguments: not arguments[4]),
    "settle": ("exchange_", lambda arguments: bool(arguments[4])),
}


def _die_unread(what: str) -> None:
    """With a call on its way to PostgreSQL, before its answer is read."""
    name, fits = _CALLS[what]
    original = Link._fetch

    async def fetch(self: Link, call: Any, statement: str, arguments: tuple[Any, ...]) -> Answer:
        if name not in statement or not fits(arguments):
            return await original(self, call, statement, arguments)
        prepared = await call.driver.prepare(statement)
        sending = asyncio.ensure_future(prepared.fetch(*arguments))
        await asyncio.wait({sending}, timeout=0)
        die()
        return None

    Link._fetch = fetch  # type: ignore[method-assign]


def _around_script(
    name: str, before: Callable[[Sequence[Part]], None], after: Callable[[], None]
) -> None:
    original = Line.run

    async def run(
        self: Line, script: Script, keys: Sequence[bytes], arguments: Sequence[Part], *then: Any
    ) -> list[Any]:
        if script.name != name:
            return await original(self, script, keys, arguments, *then)
        await self.call("SCRIPT", "LOAD", script.text)  # so that the first try is applied
        before(arguments)
        replies = await original(self, script, keys, arguments, *then)
        after()
        return replies

    Line.run = run  # type: ignore[method-assign]


# What it does


class Diary:
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


async def worker(folder: Path, url: str, diary: Diary, terms: dict[str, Any]) -> None:
    """Run jobs until told to stop."""
    processor = Processor(open_backend(url), Settings(**terms))
    Handlers(folder, diary, processor.settings.session_ttl).register(processor)

    def hear(event: Event) -> None:
        if isinstance(event, SessionEnded | StaleSettlement):
            diary.note(type(event).__name__, how=getattr(event, "how", ""))

    processor.events.subscribe(hear)
    async with processor:
        await processor.run(owns_process=True)
    diary.note("left")


async def producer(_: Path, url: str, diary: Diary, terms: dict[str, Any]) -> None:
    """Enqueue jobs by id."""
    store = open_backend(url)
    await store.open()
    jobs = [NewJob(job_id, terms["name"], "default", b"{}") for job_id in terms["ids"]]
    await store.enqueue(jobs)
    diary.note("enqueued")
    await store.close()


class Handlers:
    """They note when they begin and end. On the first delivery of a job (fence 1) some never end,
    so that something must happen to the worker; on later ones all are quick."""

    def __init__(self, folder: Path, diary: Diary, ttl: float) -> None:
        self._folder = folder
        self._diary = diary
        self._ttl = ttl
        self._never = threading.Event()

    def register(self, processor: Processor) -> None:
        """Give them to a processor, each under its own name."""
        for handler in (self.quick, self.patient, self.hanging, self.stubborn, self.blocking):
            processor.register(handler.__name__, handler)

    async def quick(self, ctx: Context, _: bytes) -> int:
        """Only begins and ends."""
        self._note(ctx, "start")
        if os.environ.get("CRASH_AT") == "inside":
            die()
        return self._note(ctx, "end")

    async def patient(self, ctx: Context, _: bytes) -> int:
        """Waits until the test lets this delivery go."""
        self._note(ctx, "start")
        while not (self._folder / f"go-{ctx.fence}").exists():
            await asyncio.to_thread(self._never.wait, 0.01)
        return self._note(ctx, "end")

    async def hanging(self, ctx: Context, _: bytes) -> int:
        """Waits for what never comes."""
        self._note(ctx, "start")
        if ctx.fence == 1:
            await asyncio.Event().wait()
        return self._note(ctx, "end")

    def stubborn(self, ctx: Context, _: bytes) -> int:
        """The same on a thread, which nobody can interrupt."""
        self._note(ctx, "start")
        if ctx.fence == 1:
            self._never.wait()
        return self._note(ctx, "end")

    async def blocking(self, ctx: Context, _: bytes) -> int:
        """Holds the event loop for three times the time to live."""
        self._note(ctx, "start")
        self._never.wait(3 * self._ttl)
        return self._note(ctx, "end")

    def _note(self, ctx: Context, what: str) -> int:
        self._diary.note(what, job=ctx.job_id, fence=ctx.fence)
        return ctx.fence


def main() -> None:
    """Do what the command line says."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    verb, folder, url, terms = sys.argv[1:]
    if "CRASH_AT" in os.environ:
        arm(os.environ["CRASH_AT"])
    act = {"worker": worker, "producer": producer}[verb]
    asyncio.run(act(Path(folder), url, Diary(Path(folder)), json.loads(terms)))


if __name__ == "__main__":
    main()
