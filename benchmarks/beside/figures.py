"""Cells of the tables, from what the rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.beside.rounds import Rounds, Shot
from benchmarks.beside.subjects import Subject
from benchmarks.report import at, ratio, spread

SETTINGS = ((False, "default"), (True, "best"))
ABSENT = "cannot"
"""In the place of a figure: the peer cannot follow this scene at this setting."""


def figure(rounds: Rounds, one: Shot | None, name: str, digits: int = 0) -> str:
    """A cell: the spread of what the runs printed."""
    if one is None:
        return ""
    values = rounds.values(one, name)
    return marked(rounds, one, spread(values, digits)) if values else missing(one)


def percentile(rounds: Rounds, one: Shot, percent: int) -> str:
    """A cell: the spread of this percentile of the runs' milliseconds."""
    values = [at(run["ms"], percent) for run in rounds.kept.get(one, [])]
    return marked(rounds, one, spread(values, 2)) if values else missing(one)


def missing(one: Shot) -> str:
    """Why there is no figure."""
    return "failed" if one.subject.takes_part(one.scene, one.best) else ABSENT


def marked(rounds: Rounds, one: Shot, text: str) -> str:
    """The text, with a mark when something else used the machine meanwhile."""
    return f"{text} !" if rounds.is_loud(one) else text


def versus(rounds: Rounds, a: Shot, b: Shot, name: str = "rate") -> str:
    """The ratio of two figures, run by run; nothing beside itself."""
    ours, theirs = rounds.values(a, name), rounds.values(b, name)
    return ratio(ours, theirs) if ours and theirs and a != b else ""


def against(rounds: Rounds, shots: Mapping[tuple[Subject, bool], Shot], subject: Subject) -> str:
    """Ours at the default against the better of a subject's settings; a bare write's default."""
    ours, bare = rounds.family.ours, rounds.family.bare
    settings = [best for best, _ in SETTINGS if not (best and subject == bare)]
    theirs = [shots[subject, best] for best in settings if (subject, best) in shots]
    measured = [one for one in theirs if rounds.values(one, "rate")]
    if subject == ours or not measured:
        return ""
    better = max(measured, key=lambda one: statistics.median(rounds.values(one, "rate")))
    return versus(rounds, shots[ours, False], better)


def producers(rounds: Rounds, peers: list[Subject]) -> list[tuple[Subject, bool]]:
    """Everyone who enqueues, and where it makes a difference once more at the best setting."""
    everyone = (rounds.family.ours, rounds.family.bare, *peers)
    return [(s, best) for s in everyone for best, _ in SETTINGS if s.best_producer or not best]
