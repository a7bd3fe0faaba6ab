"""The tables: those of every family, and SQLite's own."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.beside.figures import figure, versus
from benchmarks.beside.rounds import Rounds, shot
from benchmarks.beside.subjects import Subject
from benchmarks.beside.tables import Table, burn, drain, enqueue, idle, pickup
from benchmarks.report import table

MILLION = 1_000_000


def together(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Our other ways in, beside a bare insert."""
    ours, bare = rounds.family.ours, rounds.family.bare
    scenes = {
        "one call after another": shot(ours, "enqueue_one", jobs=ours.one_jobs),
        "bare INSERT": shot(bare, "enqueue_one", jobs=bare.one_jobs),
        "100 producers in a process": shot(ours, "enqueue_together", jobs=20_000, producers=100),
        "enqueue_many, 1,000 a call": shot(ours, "enqueue_bulk", jobs=ours.bulk_jobs),
    }
    rounds.run([*scenes.values()])
    rows = [
        [title, figure(rounds, one, "rate"), figure(rounds, one, "client_us", 1),
         versus(rounds, one, scenes["bare INSERT"])]
        for title, one in scenes.items()
    ]  # fmt: skip
    head = ["nimburion, default", "jobs/s", "CPU µs a job", "against the bare INSERT"]
    return [table("SQLite, ways in", head, rows)]


def long(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Drain with a long table: a million waiting, and a million completed kept."""
    ours = rounds.family.ours
    jobs = ours.drained(False, 1)
    alone = shot(ours, "drain", jobs=jobs, processes=1)
    crowd = replace(shot(ours, "drain", jobs=jobs, processes=1, stay=MILLION), limit=400)
    kept = replace(shot(ours, "drain", jobs=jobs, processes=1, kept=MILLION), limit=400)
    rounds.run([alone, crowd, kept])
    rows = [
        ["nothing else in the file", figure(rounds, alone, "rate"), ""],
        ["1 M more waiting", figure(rounds, crowd, "rate"), versus(rounds, crowd, alone)],
        ["1 M completed kept", figure(rounds, kept, "rate"), versus(rounds, kept, alone)],
    ]
    return [table("SQLite, a long table, drain, jobs/s", ["nimburion, default", "", "ratio"], rows)]


TABLES: dict[str, Table] = {
    made.__name__: made for made in (enqueue, together, drain, burn, pickup, idle, long)
}
