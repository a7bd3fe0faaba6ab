"""Bulk operations: started with a preview, listed, shown and cancelled."""

from __future__ import annotations

from random import Random

import pytest

from nimburion.core.backend import Backend
from nimburion.core.timing.clock import SystemClock
from nimburion.jobs.bulk_operations import BulkOperationRunner
from tests.cli.conftest import CommandLine


async def run_steps(backend: Backend) -> None:
    """Do what a worker does."""
    await BulkOperationRunner(backend, SystemClock(), Random(1)).tick()


def states(nimburion: CommandLine) -> dict[str, str]:
    """The state of every job."""
    return {job["id"]: job["state"] for job in nimburion("jobs", "list", "--json").data["jobs"]}


def test_a_replay_in_the_background_is_previewed_and_started(nimburion: CommandLine) -> None:
    nimburion.fail("a", "b")
    nimburion.fail("c", name="other", queue="mail")
    command = ("dead", "replay", "--in-background", "--min-failures", "0", "--rate", "600/min")
    preview = nimburion(*command)
    assert preview.code == 2
    assert [line.split()[0] for line in preview.out.splitlines()] == ["ID", "c", "b", "a"]
    assert preview.err == (
        "nimburion: 3 jobs would be replayed; nothing was started. Add --yes to confirm\n"
    )
    started = nimburion(*command, "--yes")
    operation_id = started.out.split()[0]
    assert started.out.splitlines()[0] == f"{operation_id}  replay of 3 jobs started"
    nimburion.call_backend(run_steps)
    shown = nimburion("operations", "show", operation_id, "--json").data
    assert (shown["done"], shown["rate"], shown["origin"]) == (3, 10.0, "cli")
    assert set(states(nimburion).values()) == {"pending"}
    actions = [record["action"] for record in nimburion("audit", "--json").data["records"]]
    assert "operations.start_replay" in actions


def test_jobs_are_cancelled_and_deleted_in_the_background(nimburion: CommandLine) -> None:
    nimburion.enqueue("a", "b", "c")
    assert nimburion("jobs", "cancel", "a", "b", "--in-background").code == 0
    nimburion.call_backend(run_steps)
    assert states(nimburion) == {"a": "cancelled", "b": "cancelled", "c": "pending"}
    assert nimburion("jobs", "delete", "--state", "cancelled", "--limit", "1").code == 2
    assert nimburion("jobs", "delete", "--all", "--limit", "1", "--yes").code == 0
    nimburion.call_backend(run_steps)
    assert states(nimburion) == {"a": "cancelled", "c": "pending"}
    nimburion.fail("f", name="other")
    assert nimburion("dead", "purge", "f", "--in-background", "--yes").code == 0
    nimburion.call_backend(run_steps)
    assert "f" not in states(nimburion)


def test_an_operation_is_listed_shown_and_cancelled(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    assert nimburion("operations", "list").out == "no bulk operation was started\n"
    started = nimburion("jobs", "cancel", "--queue", "mail", "--in-background", "--yes", "--json")
    operation_id = started.data["id"]
    listed = nimburion("operations", "list").out.splitlines()
    assert listed[1].split()[:6] == [operation_id, "cancel", "running", "0", "0", "0"]
    assert "queue=mail" in nimburion("operations", "show", operation_id).out
    cancelled = nimburion("operations", "cancel", operation_id)
    assert cancelled.out == f"{operation_id}  cancelled: 0 done, 0 skipped, 0 failed\n"
    assert nimburion("operations", "show", "none").code == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dead", "replay", "--all", "--in-background", "--rate", "fast"), "write 10/s"),
        (("dead", "purge", "--all", "--in-background", "--rate", "0/s"), "write 10/s"),
        (("jobs", "delete", "a", "--state", "failed"), "not both"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    nimburion: CommandLine, arguments: tuple[str, ...], message: str
) -> None:
    ended = nimburion(*arguments)
    assert ended.code == 2
    assert message in ended.err
