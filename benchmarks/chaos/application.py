"""The application that the workers of a chaos run load: handlers that log what they do.

    nimburion worker benchmarks.chaos.application:make_processor

The environment names the folder of the event log (CHAOS_FOLDER) and this worker (CHAOS_WORKER).
The settings come from `config.load()`, as in every application.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from benchmarks.chaos.event_log import (
    EventWriter,
    Joined,
    Reserved,
    RunEnded,
    RunStarted,
    SessionBegan,
    SessionOver,
    Settled,
    format_token,
    now,
)
from nimburion import config
from nimburion.core import events, settlement
from nimburion.core.backend import Backend
from nimburion.core.errors import PermanentError, SessionLost
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.settlement import Settlement
from nimburion.jobs import Context, Processor
from nimburion.jobs.handling.context import get_record

SHARES = {"brief": 895, "threaded": 50, "lengthy": 30, "flaky": 18, "broken": 2, "unwanted": 5}
"""How many of 1,000 jobs have each name."""
UNWANTED = "unwanted"
"""The name of the jobs that the producer cancels as soon as they are acknowledged."""


JOIN = "join"
"""The name of the jobs of flows that take results of others."""


def choose_name(random: Random) -> str:
    """Draw the name of a job, by its share."""
    return random.choices([*SHARES], [*SHARES.values()])[0]


def make_processor() -> Processor:
    """Return the processor that `nimburion worker` runs."""
    writer = EventWriter(Path(os.environ["CHAOS_FOLDER"]), os.environ["CHAOS_WORKER"])
    processor = Processor.from_config(config.load())
    log_exchanges(processor.backend, writer)
    log_sessions(processor, writer)
    Handlers(writer).register(processor, list_instant_names())
    if int(os.environ.get("CHAOS_DURABLE", "0")):
        from benchmarks.chaos.durable import DurableHandlers

        DurableHandlers(writer).register(processor)
    return processor


def list_instant_names() -> list[str]:
    """Return the names of jobs that do nothing, as many as the run asks for."""
    return [f"instant-{number}" for number in range(int(os.environ.get("CHAOS_NAMES", "0")))]


class Handlers:
    """The handlers. Each logs its start and its end, and returns the token of its lease."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer

    def register(self, processor: Processor, instant_names: Sequence[str] = ()) -> None:
        """Register each under its name."""
        processor.register("brief", self.brief)
        processor.register("threaded", self.threaded)
        processor.register("lengthy", self.lengthy)
        processor.register(UNWANTED, self.lengthy)
        processor.register("flaky", self.flaky)
        processor.register("broken", self.broken)
        processor.register(JOIN, self.join)
        for name in instant_names:
            processor.register(name, self.instant)

    async def instant(self, ctx: Context, _: bytes) -> str:
        """Takes no time."""
        token = self._log_start(ctx)
        self._writer.write(RunEnded(now(), token, "returned"))
        return token

    async def brief(self, ctx: Context, _: bytes) -> str:
        """Takes a few milliseconds."""
        return await self._run(ctx, 0.004)

    async def lengthy(self, ctx: Context, _: bytes) -> str:
        """Takes long enough that kills and pauses hit it."""
        return await self._run(ctx, 0.8)

    def threaded(self, ctx: Context, _: bytes) -> str:
        """Takes a few milliseconds of a thread."""
        token = self._log_start(ctx)
        time.sleep(0.008)
        self._writer.write(RunEnded(now(), token, "returned"))
        return token

    async def flaky(self, ctx: Context, _: bytes) -> str:
        """Fails the first time, so that it is retried."""
        return await self._run(ctx, 0.002, ValueError("once") if ctx.failures == 0 else None)

    async def broken(self, ctx: Context, _: bytes) -> str:
        """Always fails, and becomes a dead letter."""
        return await self._run(ctx, 0.002, PermanentError("broken"))

    async def join(self, ctx: Context, payload: bytes) -> str:
        """Logs the results that it takes."""
        results = msgspec.json.decode(payload, type=dict[str, list[str]])["results"]
        self._writer.write(Joined(now(), ctx.job_id, results))
        return await self._run(ctx, 0.002)

    async def _run(self, ctx: Context, seconds: float, error: Exception | None = None) -> str:
        token = self._log_start(ctx)
        outcome = "returned" if error is None else type(error).__name__
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        finally:
            self._writer.write(RunEnded(now(), token, outcome))
        if error is not None:
            raise error
        return token

    def _log_start(self, ctx: Context) -> str:
        token = format_token(get_record(ctx).delivery.lease)
        self._writer.write(RunStarted(now(), ctx.job_id, ctx.attempt, token))
        return token


def log_sessions(processor: Processor, writer: EventWriter) -> None:
    """Log the sessions of this worker."""

    def log(event: events.Event) -> None:
        match event:
            case events.SessionOpened():
                writer.write(SessionBegan(now(), event.session_id))
            case events.SessionEnded():
                writer.write(SessionOver(now(), event.session_id, event.how))

    processor.events.subscribe(log)


def log_exchanges(backend: Backend, writer: EventWriter) -> None:
    """Log what the backend answers to the exchanges of this worker, before the worker sees it."""
    exchange = backend.consuming.exchange
    first_try = ("", 0, 0.0)

    async def logged_exchange(
        session_id: str, number: int, settlements: Sequence[Settlement], request: ReserveRequest
    ) -> Reply:
        nonlocal first_try
        if first_try[:2] != (session_id, number):
            first_try = (session_id, number, now())
        try:
            reply = await exchange(session_id, number, settlements, request)
        except SessionLost:
            refused = [settlement.Settled.STALE] * len(settlements)
            log_results(writer, session_id, first_try[2], settlements, refused)
            raise
        log_results(writer, session_id, first_try[2], settlements, reply.results)
        if reply.deliveries:
            received = [(one.lease.job_id, format_token(one.lease)) for one in reply.deliveries]
            writer.write(Reserved(now(), session_id, received))
        return reply

    backend.consuming.exchange = logged_exchange  # type: ignore[method-assign]


def log_results(
    writer: EventWriter,
    session: str,
    sent: float,
    settlements: Sequence[Settlement],
    results: Sequence[settlement.Settled],
) -> None:
    """Log the results of the settlements of one exchange."""
    if results:
        named = [
            (format_token(one.lease), type(one).__name__.lower(), result.value)
            for one, result in zip(settlements, results, strict=False)
        ]
        writer.write(Settled(now(), session, sent, named))
