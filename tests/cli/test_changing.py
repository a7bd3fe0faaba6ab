"""Commands that change something: counts first, and many only with --yes."""

from __future__ import annotations

from tests.cli.conftest import CommandLine


def states(nimburion: CommandLine) -> dict[str, str]:
    """The state of every job."""
    jobs = nimburion("jobs", "list", "--json", "--limit", "1000").data["jobs"]
    return {job["id"]: job["state"] for job in jobs}


def test_cancel_by_id(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b")
    nimburion.fail("f", name="other")
    call = nimburion("jobs", "cancel", "a", "f", "--json")
    assert (call.code, call.data) == (1, {"a": "cancelled", "f": "finished"})
    missing = nimburion("jobs", "cancel", "b", "x")
    assert missing.code == 4
    assert missing.out.splitlines() == [
        "b  cancelled",
        "x  not cancelled: no such job",
    ]
    late = nimburion("jobs", "cancel", "f")
    assert (late.code, late.out.splitlines()[0]) == (1, "f  not cancelled: it had already ended")
    assert states(nimburion) == {"a": "cancelled", "b": "cancelled", "f": "failed"}


def test_cancel_all_that_match_needs_yes(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b", queue="mail")
    nimburion.enqueue("c")
    counted = nimburion("jobs", "cancel", "--queue", "mail")
    assert (counted.code, counted.out) == (2, "")
    assert counted.err == (
        "nimburion: 2 jobs would be cancelled; nothing was done. Add --yes to confirm\n"
    )
    assert set(states(nimburion).values()) == {"pending"}
    assert nimburion("jobs", "cancel", "--queue", "mail", "--yes").code == 0
    assert states(nimburion) == {"a": "cancelled", "b": "cancelled", "c": "pending"}
    assert nimburion("jobs", "cancel", "--all", "--yes").out == "c  cancelled\n"


def test_retry_and_replay_by_id(nimburion: CommandLine) -> None:
    nimburion.fail("f1", "f2", "f3")
    assert nimburion("jobs", "retry", "f1").out == "1 job replayed\n"
    assert nimburion("dead", "replay", "f2", "--json").data == {
        "replayed": ["f2"],
        "held": [],
        "not_replayed": {},
    }
    again = nimburion("dead", "replay", "f2")
    assert (again.code, again.out) == (
        1,
        "0 jobs replayed\nf2  not replayed: it is pending, not failed\n",
    )
    for command in (("jobs", "retry"), ("dead", "replay")):
        missing = nimburion(*command, "x")
        assert (missing.code, missing.out) == (
            4,
            "0 jobs replayed\nx  not replayed: no such job\n",
        )
    assert states(nimburion) == {"f1": "pending", "f2": "pending", "f3": "failed"}


def test_replay_all_that_match_needs_yes(nimburion: CommandLine) -> None:
    nimburion.fail("f1", "f2", queue="mail")
    nimburion.fail("f3", name="other")
    counted = nimburion("dead", "replay", "--queue", "mail")
    assert counted.code == 2
    assert "2 jobs would be replayed; nothing was done" in counted.err
    assert nimburion("dead", "replay", "--queue", "mail", "--yes").out == "2 jobs replayed\n"
    assert nimburion("dead", "replay", "--reason", "lost", "--yes").out == "0 jobs replayed\n"
    assert nimburion("dead", "replay", "--all", "--yes").out == "1 job replayed\n"


def test_purge_needs_yes_even_for_one(nimburion: CommandLine) -> None:
    nimburion.fail("f1", "f2")
    nimburion.enqueue("p")
    counted = nimburion("dead", "purge", "f1")
    assert counted.code == 2
    assert "1 job would be purged for good; nothing was done" in counted.err
    mixed = nimburion("dead", "purge", "f1", "p", "--yes", "--json")
    not_purged = {"p": "it is pending, not failed"}
    assert (mixed.code, mixed.data) == (1, {"purged": 1, "not_purged": not_purged})
    missing = nimburion("dead", "purge", "x", "--yes")
    assert (missing.code, missing.out) == (4, "0 jobs purged\nx  not purged: no such job\n")
    assert states(nimburion) == {"f2": "failed", "p": "pending"}
    assert nimburion("dead", "purge", "--all", "--yes").out == "1 job purged\n"


def test_waiting_jobs_are_made_due(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b", after=3600.0)
    nimburion.enqueue("c")
    changed = nimburion("jobs", "run-now", "a", "c")
    assert (changed.code, changed.out) == (
        1,
        "a  due now\nc  not changed: it is due already, runs or has ended\n",
    )
    missing = nimburion("jobs", "run-now", "x")
    assert (missing.code, missing.out) == (4, "x  not changed: no such job\n")
    assert states(nimburion) == {"a": "pending", "b": "scheduled", "c": "pending"}
    counted = nimburion("jobs", "run-now", "--all")
    assert (counted.code, "1 job would be made due; nothing was started" in counted.err) == (
        2,
        True,
    )
    started = nimburion("jobs", "run-now", "--state", "scheduled", "--rate", "5/s", "--yes")
    assert "run now of 1 job started" in started.out
    assert nimburion("jobs", "run-now", "a", "--rate", "5/s").code == 0
    records = nimburion("audit", "--json").data["records"]
    assert [(one["action"], one["changed"]) for one in records][-2:] == [
        ("jobs.run_now", 0),
        ("jobs.run_now", 1),
    ]


def test_many_are_done_in_steps(nimburion: CommandLine) -> None:
    ids = [f"f{number:04}" for number in range(1203)]
    nimburion.fail(*ids)
    assert nimburion("dead", "replay", "--all", "--yes").out == "1203 jobs replayed\n"
    cancelled = nimburion("jobs", "cancel", "--all", "--yes")
    assert cancelled.out == "1203 jobs cancelled\n"
