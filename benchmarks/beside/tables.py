"""The tables that every family has: which scenes are run, and how their figures are shown."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.beside.figures import (
    SETTINGS,
    against,
    figure,
    percentile,
    producers,
    versus,
)
from benchmarks.beside.rounds import Rounds, shot
from benchmarks.beside.subjects import Subject
from benchmarks.report import Rows, table

Table = Callable[[Rounds, list[Subject]], list[str]]


def enqueue(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Enqueue: one call after another, and in bulk."""
    family = rounds.family
    everyone = producers(rounds, peers)
    ones = {(s, best): shot(s, "enqueue_one", best, jobs=s.one_jobs) for s, best in everyone}
    many = {
        (s, best): shot(s, "enqueue_bulk", best, jobs=s.bulk_jobs)
        for s, best in everyone
        if s != family.bare
    }
    rounds.run([*ones.values(), *many.values()])
    rows: Rows = []
    for subject in (family.ours, family.bare, *peers):
        one = [figure(rounds, ones.get((subject, best)), "rate") for best, _ in SETTINGS]
        bulk = [figure(rounds, many.get((subject, best)), "rate") for best, _ in SETTINGS]
        rows.append([subject.title, *one, against(rounds, ones, subject)])
        rows[-1] += [*bulk, against(rounds, many, subject), subject.bulk if any(bulk) else ""]
    head = ["", "one by one, default", "best", "ratio", "bulk, default", "best", "ratio", "bulk is"]
    return [table(f"{family.title}, enqueue, jobs/s", head, rows)]


def drain(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Drain: one worker process, and two."""
    family = rounds.family
    shots = {
        (s, best, many): shot(s, "drain", best, jobs=s.drained(best, many), processes=many)
        for s in (family.ours, *peers)
        for best, _ in SETTINGS
        for many in (1, 2)
    }
    rounds.run([*shots.values()])
    rows: Rows = []
    for subject in (family.ours, *peers):
        for best, setting in SETTINGS:
            row = [subject.title, setting]
            for many in (1, 2):
                one = shots[subject, best, many]
                row += [
                    figure(rounds, one, "rate"),
                    versus(rounds, shots[family.ours, False, many], one),
                ]
                row += [figure(rounds, one, "client_us", 1), figure(rounds, one, "server_us", 1)]
            alone, beside = shots[subject, best, 1], shots[subject, best, 2]
            row += [versus(rounds, beside, alone, "client_us")]
            rows.append(row + [figure(rounds, alone, name, n) for name, _, n in family.drained])
    columns = ["process, jobs/s", "ratio", "worker CPU µs a job", "server CPU µs a job"]
    head = ["", "", f"1 {columns[0]}", *columns[1:], "2 processes, jobs/s", *columns[1:]]
    head += ["worker CPU, 2 against 1", *(f"{head}, 1 process" for _, head, _ in family.drained)]
    return [table(f"{family.title}, drain", head, rows)]


def burn(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Drain with a handler that uses 1 ms of processor time."""
    ours = rounds.family.ours
    shots = {
        (subject, many): shot(
            subject,
            "drain",
            subject != ours,
            jobs=min(3_000, subject.drain[1] * 8) * many,
            processes=many,
            kind="burn",
        )
        for subject in (ours, *peers)
        for many in (1, 2)
    }
    rounds.run([one for (subject, _), one in shots.items() if subject == ours])
    rounds.run([one for (subject, _), one in shots.items() if subject != ours], repeat=1)
    rows = [
        [subject.title, "default" if subject == ours else "best",
         figure(rounds, shots[subject, 1], "rate"), figure(rounds, shots[subject, 2], "rate"),
         versus(rounds, shots[subject, 2], shots[subject, 1])]
        for subject in (ours, *peers)
    ]  # fmt: skip
    head = ["", "", "1 process", "2 processes", "2 against 1"]
    return [table(f"{rounds.family.title}, drain of jobs that use 1 ms of CPU, jobs/s", head, rows)]


def pickup(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Pickup: from before the call in one process to the handler in another, 50 jobs a second."""
    everyone = (rounds.family.ours, *peers)
    shots = {
        (subject, best): shot(subject, "pickup", best, jobs=500, every=0.02)
        for subject in everyone
        for best, _ in SETTINGS
    }
    rounds.run([*shots.values()])
    rows = [
        [subject.title]
        + [
            percentile(rounds, shots[subject, best], percent)
            for best, _ in SETTINGS
            for percent in (50, 99)
        ]
        for subject in everyone
    ]
    head = ["", "default, p50", "p99", "best, p50", "p99"]
    return [table(f"{rounds.family.title}, pickup at 50 jobs/s, ms", head, rows)]


def idle(rounds: Rounds, peers: list[Subject]) -> list[str]:
    """Idle: a worker with nothing to do, and what the server does for it."""
    family = rounds.family
    shots = {
        (subject, best): shot(subject, "idle", best, seconds=family.idle_seconds)
        for subject in (family.ours, *peers)
        for best, _ in SETTINGS
    }
    rounds.run([*shots.values()], repeat=1)
    columns = (*family.idle, ("client_percent", "worker CPU, %", 2))
    columns += (("server_percent", "server CPU, %", 2),)
    rows = [
        [subject.title, setting]
        + [figure(rounds, shots[subject, best], name, digits) for name, _, digits in columns]
        for subject in (family.ours, *peers)
        for best, setting in SETTINGS
    ]
    head = ["", "", *(head for _, head, _ in columns)]
    return [table(f"{family.title}, an idle worker", head, rows)]
