"""Durable runs on the command line: their steps, signals to them, and names with open runs."""

from __future__ import annotations

import pytest

from nimburion import DurableContext, Flow, Processor, Signal, job
from nimburion.core.backend import Backend
from tests.cli.conftest import CommandLine

confirmed: Signal[dict[str, str]] = Signal("confirmed", dict[str, str])


def create_account(email: str) -> dict[str, str]:
    return {"email": email}


@job
async def onboard(ctx: DurableContext, email: str) -> str:
    """Create an account, and wait until somebody confirms it."""
    account = await ctx.step(create_account, email)
    answer = await ctx.wait_for(confirmed, timeout="7d")
    return f"{account['email']} {answer}"


def make_processor(backend: Backend) -> Processor:
    processor = Processor(backend)
    processor.register(onboard)
    return processor


async def store(backend: Backend) -> None:
    async with make_processor(backend) as processor:
        await processor.enqueue(onboard.job("ann@example.com"), id="run-1")


async def run(backend: Backend) -> None:
    async with make_processor(backend) as processor:
        await processor.drain()


@pytest.fixture
def waiting(nimburion: CommandLine) -> CommandLine:
    """A command line on a backend with a run that waits for a signal."""
    nimburion.call_backend(store)
    nimburion.call_backend(run)
    return nimburion


def test_the_steps_and_the_wait_of_a_run(waiting: CommandLine) -> None:
    lines = waiting("jobs", "steps", "run-1").out.splitlines()
    assert lines[1].split()[:3] == ["step", "create_account", "done"]
    assert lines[1].endswith('{"email":"ann@example.com"}')
    assert lines[2].split()[:3] == ["wait", "confirmed", "waiting"]
    assert lines[2].endswith("7 d left")
    assert "the signal 'confirmed'" in lines[3]
    data = waiting("jobs", "steps", "run-1", "--json").data
    assert (data["state"], data["complete"], data["signals"]) == ("suspended", True, [])
    step, wait = data["entries"]
    assert (step["value"], step["tries"]) == ({"email": "ann@example.com"}, 1)
    assert wait["until"] - wait["started_at"] == pytest.approx(7 * 86_400)


def test_fewer_steps_than_there_are(waiting: CommandLine) -> None:
    shown = waiting("jobs", "steps", "run-1", "--limit", "1")
    assert "read 1 steps, and there are more: add --limit" in shown.out


def test_show_says_how_many_steps(waiting: CommandLine) -> None:
    assert "\nsteps     2 (`nimburion jobs steps`)\n" in waiting("jobs", "show", "run-1").out
    assert waiting("jobs", "show", "run-1", "--json").data["steps"] == 2


def test_a_job_without_steps(nimburion: CommandLine) -> None:
    nimburion.enqueue("a")
    assert "steps" not in nimburion("jobs", "show", "a").out
    shown = nimburion("jobs", "steps", "a").out.splitlines()
    assert shown == ["no steps", "No worker is live."]
    assert nimburion("jobs", "steps", "other").code == 4


def test_a_signal_resumes_the_run_and_is_sent_once(waiting: CommandLine) -> None:
    command = ("jobs", "signal", "run-1", "confirmed", '{"by":"ann"}', "--id", "s1")
    sent = waiting(*command, "--reason", "on the phone")
    assert (sent.code, sent.out) == (0, "run-1  sent\n")
    assert waiting(*command, "--json").data == {"job": "run-1", "id": "s1", "outcome": "exists"}
    assert "unread signal confirmed" in waiting("jobs", "steps", "run-1").out
    (again, first) = waiting("audit", "--json").data["records"]
    assert (first["action"], first["target"], first["changed"]) == ("jobs.signal", "run-1", 1)
    assert first["details"] == {"signal": "confirmed", "id": "s1", "reason": "on the phone"}
    assert again["changed"] == 0
    waiting.call_backend(run)
    assert waiting("status", "run-1", "--json").data["state"] == "completed"
    late = waiting("jobs", "signal", "run-1", "confirmed")
    assert (late.code, late.out) == (1, "run-1  not sent: the job has ended\n")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("other", "confirmed"), 4, "no job 'other'"),
        (("run-1", "a/b"), 2, "without a slash"),
        (("run-1", "a\x1b[2J"), 2, "control characters"),
        (("run-1", "a", "{"), 2, "its value is no JSON"),
        (("run-1", "a", "\udcff"), 2, "its value is no JSON"),
        (("run-1", "a", "1", "--id", "a b"), 2, "id must be 1-128 characters"),
        (("run-1", "a", f'"{"x" * 70_000}"'), 2, "over the limit of 65536"),
    ],
)
def test_signals_that_are_refused(
    waiting: CommandLine, arguments: tuple[str, ...], code: int, text: str
) -> None:
    ended = waiting("jobs", "signal", *arguments)
    assert (ended.code, text in ended.err) == (code, True)


def test_names_with_open_runs(waiting: CommandLine) -> None:
    (row,) = waiting("flows", "versions", "--json").data["names"]
    assert (row["name"], row["suspended"], row["waiting"]) == ("onboard", 1, 0)
    assert (row["oldest_id"], row["workers"]) == ("run-1", 0)
    assert "no worker serves it" in waiting("flows", "versions").out
    waiting("jobs", "signal", "run-1", "confirmed")
    (row,) = waiting("flows", "versions", "--json").data["names"]
    assert (row["suspended"], row["waiting"]) == (0, 1)
    waiting.call_backend(run)
    assert waiting("flows", "versions").out == "no open runs\n"


def test_the_steps_without_their_values(waiting: CommandLine) -> None:
    waiting("jobs", "signal", "run-1", "other", '"hush"')
    for options in ((), ("--json",)):
        shown = waiting("jobs", "steps", "run-1", "--no-values", *options).out
        assert "create_account" in shown
        assert "ann@example.com" not in shown
        assert "hush" not in shown
    data = waiting("jobs", "steps", "run-1", "--no-values", "--json").data
    assert (data["entries"][0]["value_size"], data["entries"][0]["value"]) == (27, None)
    assert data["signals"][0]["payload_size"] == 6


def test_the_export_of_a_flow_has_the_steps_of_its_runs(nimburion: CommandLine) -> None:
    async def enqueue_orders(backend: Backend) -> None:
        flow = Flow("orders")
        flow.add(onboard.job("ann@example.com"), name="first")
        async with make_processor(backend) as processor:
            await processor.enqueue_flow(flow, id="f")

    nimburion.call_backend(enqueue_orders)
    assert nimburion("flows", "export", "f").data["runs"] == []
    nimburion.call_backend(run)
    exported = nimburion("flows", "export", "f")
    (found,) = exported.data["runs"]
    assert (found["id"], found["state"]) == ("f.first", "suspended")
    assert [one["key"] for one in found["entries"]] == ["create_account", "confirmed"]
    assert "ann@example.com" not in exported.out
