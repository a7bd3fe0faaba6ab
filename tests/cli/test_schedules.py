"""`nimburion schedules`: what it says, what it refuses."""

from __future__ import annotations

import pytest

from nimburion.core.schedules import ScheduleRecord, put_schedule
from nimburion.scheduler.spec import ScheduleSpec
from tests.cli.conftest import CommandLine

FAR = 4_000_000_000.0


def declare(nimburion: CommandLine) -> None:
    """A schedule as running code has declared it."""
    spec = ScheduleSpec(trigger="0 2 * * *", job="report", declared_until=FAR)
    record = ScheduleRecord(name="coded", spec=spec.encode(), owner="shop")
    nimburion.call_backend(lambda backend: put_schedule(backend, record))


def test_next_explains_and_lists(nimburion: CommandLine) -> None:
    ended = nimburion("schedules", "next", "30 2 * * *", "--tz", "Europe/Rome", "--count", "2")
    first, *ticks = ended.out.splitlines()
    assert first == "At 02:30 every day (time zone Europe/Rome)"
    assert len(ticks) == 2
    often = nimburion("schedules", "next", "*/5 * * * *", "--tz", "Europe/Rome").out
    assert often.startswith(
        "Every fifth minute of every hour, also while the clock changes (time zone Europe/Rome)\n"
    )
    data = nimburion("schedules", "next", "@every 5m", "--json").data
    assert data["explanation"] == "Every 5 minutes"
    assert data["ticks"][1] - data["ticks"][0] == 300


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("0 25 * * *",), "field 2 (hour), column 3, '25'"),
        (("@daily", "--tz", "Europe/Roma"), "did you mean 'Europe/Rome'"),
        (("* * * * * *",), "6 fields"),
        (("0", "9", "*", "*", "MON-FRI"), 'put WHEN in quotes, like "30 9 * * MON-FRI"'),
    ],
)
def test_next_refuses_what_cannot_be(
    nimburion: CommandLine, arguments: tuple[str, ...], problem: str
) -> None:
    ended = nimburion("schedules", "next", *arguments)
    assert ended.code == 2
    assert problem in ended.err


def test_a_group_without_a_command_shows_its_help(nimburion: CommandLine) -> None:
    ended = nimburion("config")
    assert ended.code == 2
    assert "\n  show   Show the current value of every setting" in ended.err


def test_the_life_of_a_schedule_by_hand(nimburion: CommandLine) -> None:
    added = nimburion(
        "schedules", "add", "clean-up", "@every 5m", "clean", "--args", '{"a": 1}', "--json"
    )
    assert (added.code, added.data["condition"], added.data["job"]) == (0, "active", "clean")
    changed = nimburion("schedules", "add", "clean-up", "@hourly", "clean", "--overlap", "skip")
    assert "@hourly" in changed.out
    assert nimburion("schedules", "pause", "clean-up").out == "clean-up is paused\n"
    (listed,) = nimburion("schedules", "list", "--json").data
    assert (listed["condition"], len(listed["next_ticks"])) == ("paused", 5)
    assert nimburion("schedules", "resume", "clean-up").code == 0
    job_id = nimburion("schedules", "run", "clean-up").out.strip()
    (made,) = nimburion("schedules", "history", "clean-up", "--json").data
    assert (made["id"], made["name"]) == (job_id, "clean")
    assert "clean-up" in nimburion("schedules", "show", "clean-up").out
    assert nimburion("schedules", "remove", "clean-up").code == 0
    assert "there is no schedule" in nimburion("schedules", "list").out


@pytest.mark.parametrize("command", ["pause", "resume", "remove", "run", "history", "show"])
def test_what_is_not_there(nimburion: CommandLine, command: str) -> None:
    declare(nimburion)
    ended = nimburion("schedules", command, "nobody")
    assert (ended.code, ended.err) == (
        4,
        "nimburion: there is no schedule 'nobody' in this backend\n",
    )


def test_what_code_declares_is_paused_not_removed(nimburion: CommandLine) -> None:
    declare(nimburion)
    ended = nimburion("schedules", "remove", "coded")
    assert ended.code == 2
    assert "pause the schedule" in ended.err
    assert nimburion("schedules", "add", "coded", "@daily", "x").code == 2
    assert nimburion("schedules", "pause", "coded").code == 0
    assert "shop" in nimburion("schedules", "list").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("a b", "@daily", "x"),
        ("a", "@daily", "x", "--args", "[1]"),
        ("a", "@daily", "x", "--args", "{"),
        ("a", "@daily", "x", "--misfire", "later"),
        ("a", "@daily", "x", "--tz", "Mars"),
        ("a", "@daily", "x y"),
    ],
)
def test_add_refuses_what_cannot_be(nimburion: CommandLine, arguments: tuple[str, ...]) -> None:
    ended = nimburion("schedules", "add", *arguments)
    assert ended.code == 2
    assert ended.err.count("\n") == 1


def test_config_check_reads_the_expressions(nimburion: CommandLine) -> None:
    config = nimburion.folder / "config.yaml"
    config.write_text(
        "scheduler:\n  tasks:\n    - {name: a, cron: 0 26 * * *, job_name: x, payload: {k: [1]}}\n"
    )
    ended = nimburion("config", "check")
    assert ended.code == 2
    assert ended.err == (
        "nimburion: config.yaml:3: scheduler task 'a': cron expression '0 26 * * *': "
        "field 2 (hour), column 3, '26': '26' is not one of 0-23\n"
    )
    config.write_text(config.read_text().replace("26", "6"))
    assert nimburion("config", "check").code == 0
    shown = nimburion("config", "show", "--json").data["scheduler"]
    assert shown["tasks"][0]["payload"] == '{"k": [1]}'
