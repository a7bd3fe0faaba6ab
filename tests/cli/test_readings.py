"""`--backend` more than once: `top`, `stats` and `queues list` show all backends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.cli.readings import BackendReader, read_each
from nimburion.core.backend import Backend
from nimburion.core.job import NewJob
from nimburion.core.metrics.statistics import Counters, Statistics
from tests.cli.conftest import CommandLine


def fill(path: Path, queue: str, jobs: int) -> None:
    """Create a backend with pending jobs, and counters of jobs that were completed."""

    async def store() -> None:
        backend = SQLiteBackend(path)
        await backend.open()
        await backend.producing.enqueue([NewJob(f"{n}", "send", queue, b"{}") for n in range(jobs)])
        now = int(await backend.now())
        counters = Counters(enqueued=jobs, completed=10 * jobs)
        row = Statistics(step=60, start=now // 60 * 60, queue=queue, name="send", counters=counters)
        await backend.consuming.put_statistics("test", [row])
        await backend.close()

    asyncio.run(store())


@pytest.fixture
def urls(nimburion: CommandLine) -> list[str]:
    """Two backends with the queue `mail`."""
    for name, jobs in (("a", 1), ("b", 2)):
        fill(nimburion.folder / f"{name}.db", "mail", jobs)
    return [f"sqlite:///{nimburion.folder / name}.db" for name in ("a", "b")]


@pytest.fixture
def both(urls: list[str]) -> list[str]:
    """The options that name both backends."""
    return ["--backend", urls[0], "--backend", urls[1]]


@pytest.fixture
def missing(nimburion: CommandLine) -> list[str]:
    """The options that name a third backend, which does not exist."""
    return ["--backend", f"sqlite:///{nimburion.folder}/missing.db"]


def test_top_shows_each_backend_and_the_sum(nimburion: CommandLine, both: list[str]) -> None:
    ended = nimburion("top", *both)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"1  SQLite {nimburion.folder}/a.db: 0 workers, 1 due, 0 processing")
    assert lines[1].startswith(f"2  SQLite {nimburion.folder}/b.db: 0 workers, 2 due, 0 processing")
    assert lines[2].startswith("2 of 2: 0 workers, 3 due, 0 processing")
    assert lines[4].split()[:3] == ["BACKEND", "QUEUE", "DUE"]
    assert [line.split()[:3] for line in lines[5:7]] == [["1", "mail", "1"], ["2", "mail", "2"]]
    assert "! 2: 2 jobs 'send' wait in queue 'mail'" in ended.out
    assert lines[-1] == "no worker is running"


def test_the_options_before_and_after_a_command_count(
    nimburion: CommandLine, urls: list[str]
) -> None:
    ended = nimburion("--backend", urls[0], "top", "--backend", urls[1], "--json")
    assert [len(one["data"]["queues"]) for one in ended.data["backends"]] == [1, 1]
    once = nimburion("--backend", urls[0], "top", "--backend", urls[0], "--json")
    assert once.data["backend"].endswith("a.db")


def test_queues_have_a_line_for_each_backend(nimburion: CommandLine, both: list[str]) -> None:
    fill(nimburion.folder / "b.db", "late", 0)
    nimburion("--backend", f"sqlite:///{nimburion.folder}/b.db", "queues", "pause", "late")
    ended = nimburion("queues", "list", *both)
    table = ended.out.split("\n\n")[1].splitlines()
    assert [line.split()[:3] for line in table[:4]] == [
        ["BACKEND", "QUEUE", "DUE"],
        ["2", "late", "0"],
        ["1", "mail", "1"],
        ["2", "mail", "2"],
    ]
    assert table[-1].startswith("2: 2 jobs 'send' wait in queue 'mail'")
    data = nimburion("queues", "list", "--json", *both).data["backends"]
    assert [[queue["name"] for queue in one["data"]] for one in data] == [
        ["mail"],
        ["late", "mail"],
    ]


def test_stats_are_shown_by_backend_and_added_up(nimburion: CommandLine, both: list[str]) -> None:
    out = nimburion("stats", *both).out
    rows = [line.split()[:5] for line in out.splitlines() if line.startswith("mail")]
    assert rows == [
        ["mail", "send", "1", "1", "10"],
        ["mail", "send", "2", "2", "20"],
        ["mail", "send", "all", "3", "30"],
    ]
    data = nimburion("stats", "--json", *both).data["backends"]
    assert [len(one["data"]["intervals"]) for one in data] == [1, 1]


@pytest.mark.parametrize("command", [["top"], ["stats"], ["queues", "list"]], ids=" ".join)
def test_a_backend_that_cannot_be_used_is_shown_and_code_3(
    command: list[str], nimburion: CommandLine, both: list[str], missing: list[str]
) -> None:
    ended = nimburion(*command, *both, *missing)
    assert ended.code == 3
    path = f"{nimburion.folder}/missing.db"
    assert f"3  SQLite {path}: cannot be used: SQLite {path} does not exist; " in ended.out
    assert "mail" in ended.out
    assert ended.err.startswith("nimburion: 1 of 3 backends cannot be used: SQLite ")
    assert ended.err.count("\n") == 1
    assert not (nimburion.folder / "missing.db").exists()
    ended = nimburion(*command, *both, *missing, "--json")
    assert ended.code == 3
    assert [one["error"] is None for one in ended.data["backends"]] == [True, True, False]
    assert ended.data["backends"][2]["data"] is None


@pytest.mark.parametrize("command", [["jobs", "list"], ["status", "x"], ["queues", "pause", "x"]])
def test_other_commands_use_one_backend(
    command: list[str], nimburion: CommandLine, both: list[str]
) -> None:
    ended = nimburion(*command, *both)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "nimburion: --backend is given 2 times, and this command uses one backend; "
        "`top`, `stats` and `queues list` take several\n"
    )


def test_a_wrong_url_among_several_is_bad_input(nimburion: CommandLine, both: list[str]) -> None:
    assert nimburion("top", *both, "--backend", "memory://").code == 2
    assert nimburion("top", *both, "--backend", "sqllite:///x").code == 2


async def test_a_reader_opens_a_backend_as_soon_as_it_can(tmp_path: Path) -> None:
    """The live view continues with the others, and shows this one when it is there."""
    path = tmp_path / "late.db"
    reader = BackendReader(1, SQLiteBackend(path))

    async def count(backend: Backend) -> int:
        return len(await backend.reads.list_queues())

    (reading,) = await read_each([reader], count)
    assert (reading.value, str(reading.error).partition("; ")[0]) == (
        None,
        f"SQLite {path} does not exist",
    )
    await asyncio.to_thread(fill, path, "mail", 1)
    (reading,) = await read_each([reader], count)
    assert (reading.value, reading.error) == (1, None)
    await reader.close()
