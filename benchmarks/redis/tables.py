"""The tables: which scenes are run, and how their figures are shown."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

from benchmarks.redis.rounds import Rounds, Shot, shot
from benchmarks.redis.subjects import BARE, OURS, Subject
from benchmarks.report import Rows, at, ratio, spread, table

MILLION = 1_000_000
SETTINGS = ((False, "default"), (True, "best"))


def enqueue(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Enqueue: one call after another, and in bulk."""
    ones = {(s, best): shot(s, "enqueue_one", best, jobs=10_000) for s, best in producers(peers)}
    many = {
        (s, best): shot(s, "enqueue_bulk", best, jobs=s.bulk_jobs)
        for s, best in producers(peers)
        if s is not BARE
    }
    rounds.run([*ones.values(), *many.values()])
    rows: Rows = []
    for subject in (OURS, BARE, *peers):
        one = [figure(rounds, ones.get((subject, best)), "rate") for best, _ in SETTINGS]
        bulk = [figure(rounds, many.get((subject, best)), "rate") for best, _ in SETTINGS]
        rows.append([subject.title, *one, against(rounds, ones, subject)])
        rows[-1] += [*bulk, against(rounds, many, subject), subject.bulk if any(bulk) else ""]
    head = ["", "one by one, default", "best", "ratio", "bulk, default", "best", "ratio", "bulk is"]
    return [table("Redis, enqueue, jobs/s", head, rows)]


def together(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Our other ways in, and with an append-only file."""
    scenes = {
        "one call after another": shot(OURS, "enqueue_one", jobs=10_000),
        "bare LPUSH": shot(BARE, "enqueue_one", jobs=10_000),
        "100 producers in a process": shot(OURS, "enqueue_together", jobs=100_000, producers=100),
        "enqueue_many, 1,000 a call": shot(OURS, "enqueue_bulk", jobs=200_000),
        "drain, 1 process": shot(OURS, "drain", jobs=OURS.drained(False, 1), processes=1),
    }
    filed = {words: replace(one, append_only=True) for words, one in scenes.items()}
    both = [pair for words, one in scenes.items() for pair in (one, filed[words])]
    rounds.run(both)
    rows = [
        [words, figure(rounds, one, "rate"), figure(rounds, filed[words], "rate"),
         versus(rounds, filed[words], one)]
        for words, one in scenes.items()
    ]  # fmt: skip
    head = ["nimburion, default", "no append-only file", "appendfsync everysec", "ratio"]
    return [table("Redis, with and without an append-only file, jobs/s", head, rows)]


def drain(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Drain: one worker process, and two."""
    shots = {
        (s, best, many): shot(s, "drain", best, jobs=s.drained(best, many), processes=many)
        for s in (OURS, *peers)
        for best, _ in SETTINGS
        for many in (1, 2)
    }
    rounds.run([*shots.values()])
    rows: Rows = []
    for subject in (OURS, *peers):
        for best, setting in SETTINGS:
            row = [subject.title, setting]
            for many in (1, 2):
                one = shots[subject, best, many]
                row += [figure(rounds, one, "rate"), versus(rounds, shots[OURS, False, many], one)]
                row += [figure(rounds, one, "client_us", 1), figure(rounds, one, "server_us", 1)]
            alone, beside = shots[subject, best, 1], shots[subject, best, 2]
            row += [versus(rounds, beside, alone, "client_us")]
            rows.append([*row, figure(rounds, alone, "requests", 3)])
    columns = ["process, jobs/s", "ratio", "worker CPU µs a job", "server CPU µs a job"]
    head = ["", "", f"1 {columns[0]}", *columns[1:], "2 processes, jobs/s", *columns[1:]]
    head += ["worker CPU, 2 against 1", "requests a job, 1 process"]
    return [table("Redis, drain", head, rows)]


def burn(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Drain with a handler that uses 1 ms of processor time."""
    shots = {
        (subject, many): shot(
            subject, "drain", subject is not OURS, jobs=jobs * many, processes=many, kind="burn"
        )
        for subject in (OURS, *peers)
        for many, jobs in (
            (1, min(3_000, subject.drain[1] * 8)),
            (2, min(3_000, subject.drain[1] * 8)),
        )
    }
    rounds.run([one for (subject, _), one in shots.items() if subject is OURS])
    rounds.run([one for (subject, _), one in shots.items() if subject is not OURS], repeat=1)
    rows = [
        [subject.title, "default" if subject is OURS else "best",
         figure(rounds, shots[subject, 1], "rate"), figure(rounds, shots[subject, 2], "rate"),
         versus(rounds, shots[subject, 2], shots[subject, 1])]
        for subject in (OURS, *peers)
    ]  # fmt: skip
    head = ["", "", "1 process", "2 processes", "2 against 1"]
    return [table("Redis, drain of jobs that use 1 ms of CPU, jobs/s", head, rows)]


def pickup(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Pickup: from before the call in one process to the handler in another, 50 jobs a second."""
    shots = {
        (subject, best): shot(subject, "pickup", best, jobs=500, every=0.02)
        for subject in (OURS, *peers)
        for best, _ in SETTINGS
    }
    rounds.run([*shots.values()])
    rows: Rows = []
    for subject in (OURS, *peers):
        row = [subject.title]
        for best, _ in SETTINGS:
            one = shots[subject, best]
            runs = [run["ms"] for run in rounds.kept.get(one, [])]
            for percent in (50, 99):
                values = [at(run, percent) for run in runs]
                row.append(marked(rounds, one, spread(values, 2)) if values else "failed")
        rows.append(row)
    head = ["", "default, p50", "p99", "best, p50", "p99"]
    return [table("Redis, pickup at 50 jobs/s, ms", head, rows)]


def idle(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Idle: a worker with nothing to do. Requests are what the server read from its sockets."""
    shots = {
        (subject, best): shot(subject, "idle", best, seconds=10)
        for subject in (OURS, *peers)
        for best, _ in SETTINGS
    }
    rounds.run([*shots.values()], repeat=1)
    names = ("requests", "commands", "client_percent", "server_percent")
    rows = [
        [subject.title, setting] + [figure(rounds, shots[subject, best], name, 2) for name in names]
        for subject in (OURS, *peers)
        for best, setting in SETTINGS
    ]
    head = ["", "", "requests/s", "commands/s", "worker CPU, %", "server CPU, %"]
    return [table("Redis, an idle worker", head, rows)]


def memory(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Memory: what the server needs for each of 50,000 jobs that wait."""
    shots = {
        (s, b): shot(s, "memory", b, jobs=50_000) for s, b in producers(peers) if s is not BARE
    }
    rounds.run([*shots.values()], repeat=1)
    rows = [
        [subject.title]
        + [figure(rounds, shots.get((subject, best)), "bytes") for best, _ in SETTINGS]
        for subject in (OURS, *peers)
    ]
    return [table("Redis, bytes of memory a queued job", ["", "default", "best"], rows)]


def long(rounds: Rounds, _: list[Subject]) -> list[str]:
    """Ours with a million jobs waiting."""
    jobs = OURS.drained(False, 1)
    alone = shot(OURS, "drain", jobs=jobs, processes=1)
    crowd = shot(OURS, "drain", jobs=jobs, processes=1, stay=MILLION)
    room = shot(OURS, "memory", jobs=MILLION)
    rounds.run([alone, crowd])
    rounds.run([room], repeat=1)
    rows = [
        ["drain, nothing else waiting, jobs/s", figure(rounds, alone, "rate"), ""],
        ["drain, 1 M more waiting, jobs/s", figure(rounds, crowd, "rate"),
         versus(rounds, crowd, alone)],
        ["1 M waiting, bytes a job", figure(rounds, room, "bytes"), ""],
    ]  # fmt: skip
    return [table("Redis, a long queue", ["nimburion, default", "", "ratio"], rows)]


TABLES: dict[str, Callable[[Rounds, list[Subject]], list[str]]] = {
    made.__name__: made for made in (enqueue, drain, burn, pickup, idle, memory, together, long)
}


def producers(peers: list[Subject]) -> list[tuple[Subject, bool]]:
    """Everyone who enqueues, and where it makes a difference once more at the best setting."""
    everyone = (OURS, BARE, *peers)
    return [(s, best) for s in everyone for best, _ in SETTINGS if s.best_producer or not best]


def figure(rounds: Rounds, one: Shot | None, name: str, digits: int = 0) -> str:
    """A cell: the spread of what the runs printed."""
    if one is None:
        return ""
    values = rounds.values(one, name)
    return marked(rounds, one, spread(values, digits)) if values else "failed"


def marked(rounds: Rounds, one: Shot, text: str) -> str:
    """The text, with a mark when something else used the machine meanwhile."""
    return f"{text} !" if rounds.is_loud(one) else text


def versus(rounds: Rounds, a: Shot, b: Shot, name: str = "rate") -> str:
    """The ratio of two figures, run by run; nothing beside itself."""
    ours, theirs = rounds.values(a, name), rounds.values(b, name)
    return ratio(ours, theirs) if ours and theirs and a != b else ""


def against(rounds: Rounds, shots: dict[tuple[Subject, bool], Shot], subject: Subject) -> str:
    """Ours at the default against the better of a subject's settings; a bare write's default."""
    if subject is BARE:
        shots = {key: one for key, one in shots.items() if not key[1]}
    theirs = [shots[subject, best] for best, _ in SETTINGS if (subject, best) in shots]
    measured = [one for one in theirs if rounds.values(one, "rate")]
    if subject is OURS or not measured:
        return ""
    better = max(measured, key=lambda one: statistics.median(rounds.values(one, "rate")))
    return versus(rounds, shots[OURS, False], better)
