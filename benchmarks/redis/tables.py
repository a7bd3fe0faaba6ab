"""The tables: those of every family, and Redis's own."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.beside.figures import SETTINGS, figure, producers, versus
from benchmarks.beside.rounds import Rounds, shot
from benchmarks.beside.subjects import Subject
from benchmarks.beside.tables import Table, burn, drain, enqueue, idle, pickup
from benchmarks.redis.family import APPEND_ONLY
from benchmarks.report import table

MILLION = 1_000_000


def together(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Our other ways in, and with an append-only file."""
    ours, bare = rounds.family.ours, rounds.family.bare
    scenes = {
        "one call after another": shot(ours, "enqueue_one", jobs=10_000),
        "bare LPUSH": shot(bare, "enqueue_one", jobs=10_000),
        "100 producers in a process": shot(ours, "enqueue_together", jobs=100_000, producers=100),
        "enqueue_many, 1,000 a call": shot(ours, "enqueue_bulk", jobs=200_000),
        "drain, 1 process": shot(ours, "drain", jobs=ours.drained(False, 1), processes=1),
    }
    filed = {title: replace(one, condition=APPEND_ONLY) for title, one in scenes.items()}
    both = [pair for title, one in scenes.items() for pair in (one, filed[title])]
    rounds.run(both)
    rows = [
        [title, figure(rounds, one, "rate"), figure(rounds, filed[title], "rate"),
         versus(rounds, filed[title], one)]
        for title, one in scenes.items()
    ]  # fmt: skip
    head = ["nimburion, default", "no append-only file", "appendfsync everysec", "ratio"]
    return [table("Redis, with and without an append-only file, jobs/s", head, rows)]


def memory(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Memory: what the server needs for each of 50,000 jobs that wait."""
    family = rounds.family
    shots = {
        (s, b): shot(s, "memory", b, jobs=50_000)
        for s, b in producers(rounds, peers)
        if s != family.bare
    }
    rounds.run([*shots.values()], repeat=1)
    rows = [
        [subject.title]
        + [figure(rounds, shots.get((subject, best)), "bytes") for best, _ in SETTINGS]
        for subject in (family.ours, *peers)
    ]
    return [table("Redis, bytes of memory a queued job", ["", "default", "best"], rows)]


def long(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Ours with a million jobs waiting."""
    ours = rounds.family.ours
    jobs = ours.drained(False, 1)
    alone = shot(ours, "drain", jobs=jobs, processes=1)
    crowd = shot(ours, "drain", jobs=jobs, processes=1, stay=MILLION)
    memory = shot(ours, "memory", jobs=MILLION)
    rounds.run([alone, crowd])
    rounds.run([memory], repeat=1)
    rows = [
        ["drain, nothing else waiting, jobs/s", figure(rounds, alone, "rate"), ""],
        ["drain, 1 M more waiting, jobs/s", figure(rounds, crowd, "rate"),
         versus(rounds, crowd, alone)],
        ["1 M waiting, bytes a job", figure(rounds, memory, "bytes"), ""],
    ]  # fmt: skip
    return [table("Redis, a long queue", ["nimburion, default", "", "ratio"], rows)]


TABLES: dict[str, Table] = {
    made.__name__: made for made in (enqueue, drain, burn, pickup, idle, memory, together, long)
}
