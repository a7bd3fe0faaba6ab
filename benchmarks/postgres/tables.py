"""The tables: those of every family, and PostgreSQL's own."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.beside.figures import SETTINGS, figure, versus
from benchmarks.beside.rounds import Rounds, Shot, shot
from benchmarks.beside.subjects import Subject
from benchmarks.beside.tables import Table, burn, drain, enqueue, idle, pickup
from benchmarks.postgres.family import NO_PAGES
from benchmarks.report import Rows, table

LONG = 4
"""Times as many jobs as in a usual drain."""


def together(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Our other ways in, beside a bare insert."""
    ours, bare = rounds.family.ours, rounds.family.bare
    scenes = {
        "one call after another": shot(ours, "enqueue_one", jobs=ours.one_jobs),
        "bare INSERT": shot(bare, "enqueue_one", jobs=bare.one_jobs),
        "100 producers in a process": shot(ours, "enqueue_together", jobs=50_000, producers=100),
        "enqueue_many, 1,000 a call": shot(ours, "enqueue_bulk", jobs=ours.bulk_jobs),
    }
    rounds.run([*scenes.values()])
    columns = (("rate", 0), ("client_us", 1), ("server_us", 1), ("wal", 0))
    rows = [
        [title, *(figure(rounds, one, name, digits) for name, digits in columns),
         versus(rounds, one, scenes["bare INSERT"])]
        for title, one in scenes.items()
    ]  # fmt: skip
    head = ["nimburion, default", "jobs/s", "client CPU µs a job", "server CPU µs a job"]
    head += ["WAL bytes a job, full pages too", "against the bare INSERT"]
    return [table("PostgreSQL, ways in", head, rows)]


def wal(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """WAL: bytes a job, on a server that writes no full pages."""
    everyone = (rounds.family.ours, *peers)
    lives = {
        (s, best): replace(shot(s, "wal", best, jobs=s.drained(best, 1)), condition=NO_PAGES)
        for s in everyone
        for best, _ in SETTINGS
    }
    ones = {
        s: replace(shot(s, "enqueue_one", jobs=s.one_jobs // 2), condition=NO_PAGES)
        for s in everyone
    }
    rounds.run([*lives.values(), *ones.values()], repeat=1)
    rows = [
        [s.title, setting, figure(rounds, ones[s], "wal") if not best else ""]
        + [figure(rounds, lives[s, best], name) for name in ("enqueued", "drained", "beyond")]
        for s in everyone
        for best, setting in SETTINGS
    ]
    head = ["", "", "enqueued one by one", "enqueued in bulk", "drained"]
    head += ["in bulk and drained, beyond the payload"]
    return [table("PostgreSQL, WAL bytes a job, full_page_writes off", head, rows)]


def snapshot(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Snapshot: a drain while a transaction holds a snapshot from before the queue was filled."""
    ours = rounds.family.ours

    def both(subject: Subject, best: bool) -> tuple[Shot, Shot]:
        jobs = subject.drained(best, 1) * LONG
        return (
            shot(subject, "drain", best, jobs=jobs, processes=1),
            shot(subject, "drain", best, jobs=jobs, processes=1, pinned=True),
        )

    pairs = {ours: both(ours, False)} | {peer: both(peer, True) for peer in peers}
    rounds.run([*pairs[ours]])
    rounds.run([one for peer in peers for one in pairs[peer]], repeat=1)
    rows: Rows = []
    for subject, (free, held) in pairs.items():
        row = [subject.title, "default" if subject == ours else "best"]
        for one in (free, held):
            row += [figure(rounds, one, "rate"), figure(rounds, one, "late")]
        rows.append([*row, versus(rounds, held, free), versus(rounds, held, free, "late")])
    head = ["", "", "free, jobs/s", "its last third", "held, jobs/s", "its last third"]
    head += ["held against free", "of the last third"]
    return [table("PostgreSQL, drain with an old snapshot held open", head, rows)]


def kept(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Kept: our drain with completed jobs kept; how many by --kept."""
    ours, many = rounds.family.ours, rounds.size.kept
    jobs = ours.drained(False, 1)
    alone = shot(ours, "drain", jobs=jobs, processes=1)
    long = replace(
        shot(ours, "drain", jobs=jobs, processes=1, kept=many), limit=150 + many // 4_000
    )
    rounds.run([alone])
    rounds.run([long], repeat=1)
    columns = (("rate", 0), ("server_us", 1), ("wal", 0))
    rows = [
        [title, *(figure(rounds, one, name, digits) for name, digits in columns),
         versus(rounds, one, alone)]
        for title, one in (("none kept", alone), (f"{many:,} kept", long))
    ]  # fmt: skip
    head = ["nimburion, default", "jobs/s", "server CPU µs a job"]
    head += ["WAL bytes a job, full pages too", "ratio"]
    return [table("PostgreSQL, drain with completed jobs kept", head, rows)]


def flow(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Flow: our drain before and after minutes at full flow; how many by --minutes."""
    ours, minutes = rounds.family.ours, rounds.size.minutes
    one = shot(ours, "flow", jobs=ours.drained(False, 1), minutes=minutes)
    one = replace(one, limit=300 + round(90 * minutes))
    rounds.run([one], repeat=1)
    tenths = [run["slices"] for run in rounds.kept.get(one, [])]
    rows = [
        ["drain before, jobs/s", figure(rounds, one, "before")],
        [f"{minutes:g} minutes of flow, jobs/s", figure(rounds, one, "flow")],
        ["each tenth of them", "; ".join(", ".join(f"{n:,.0f}" for n in run) for run in tenths)],
        ["jobs that flowed", figure(rounds, one, "jobs")],
        ["drain after, jobs/s", figure(rounds, one, "after")],
        ["after against before", ", ".join(
            f"{run['after'] / run['before']:.2f}" for run in rounds.kept.get(one, [])
        )],
        ["database, bytes", figure(rounds, one, "bytes")],
    ]  # fmt: skip
    return [table("PostgreSQL, at full flow", ["nimburion, default", ""], rows)]


TABLES: dict[str, Table] = {
    made.__name__: made
    for made in (enqueue, together, drain, burn, pickup, idle, wal, snapshot, kept, flow)
}
