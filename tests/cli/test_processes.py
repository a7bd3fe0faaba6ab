"""Real processes: start time by what is imported, a worker, the demo and breaking it off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "nimburion"]
DEADLINE = 50

APPLICATION = """
from nimburion import config
from nimburion.jobs import Processor, job


@job(queue="sums")
def add(a: int, b: int) -> int:
    return a + b


def make() -> Processor:
    processor = Processor.from_config(config.load())
    processor.register(add)
    return processor


processor = make()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


def imported_by(folder: Path, *arguments: str) -> set[str]:
    """The modules that one command imports."""
    listing = (
        "import sys, atexit; sys.argv[1:] = {!r}\n"
        "atexit.register(lambda: print('\\n' + ' '.join(sys.modules), file=sys.stderr))\n"
        "from nimburion.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", listing.format(list(arguments))],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stderr.splitlines()[-1].split())


def test_help_imports_neither_msgspec_nor_asyncio(tmp_path: Path) -> None:
    modules = imported_by(tmp_path, "--help")
    heavy = {"msgspec", "asyncio", "yaml", "rich", "sqlite3", "nimburion.core", "nimburion.jobs"}
    assert "click" in modules
    assert modules & heavy == set()


def test_status_imports_the_backend_and_nothing_to_run_jobs_or_draw(tmp_path: Path) -> None:
    assert run(tmp_path, "enqueue", "x", "--id", "a").returncode == 0
    modules = imported_by(tmp_path, "status", "a")
    heavy = {
        "yaml",
        "rich",
        "nimburion.jobs",
        "nimburion.scheduler",
        "importlib.metadata",
        "uvloop",
    }
    assert "nimburion.backends.sqlite" in modules
    assert modules & heavy == set()


def test_a_module_says_its_version(tmp_path: Path) -> None:
    result = run(tmp_path, "--version")
    assert (result.returncode, result.stdout.split()[0]) == (0, "nimburion")


def test_output_that_nobody_reads_to_the_end_is_no_traceback(tmp_path: Path) -> None:
    jobs = [*COMMAND, "config", "show"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        result = subprocess.run(
            jobs, cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("name", ["processor", "make"])
def test_a_worker_runs_jobs_until_it_is_stopped(name: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    run(tmp_path, "enqueue", "add", "--args", '{"a": 1, "b": 2}', "--queue", "sums", "--id", "a")
    with worker(tmp_path, f"app:{name}", "--queues", "sums,other", "--concurrency", "2") as process:
        assert process.stderr
        lines = wait_for(tmp_path, process, "a", "completed")
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert lines["result"] == 3
    assert f"backend: SQLite {tmp_path}/nimburion.db" in rest


def test_a_worker_takes_backend_and_file_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "other.yaml").write_text("jobs: {concurrency: 3}")
    backend = ["--backend", f"sqlite:///{tmp_path}/other.db"]
    run(
        tmp_path,
        "enqueue",
        "add",
        "--args",
        '{"a": 1, "b": 2}',
        "--queue",
        "sums",
        "--id",
        "a",
        *backend,
    )
    with worker(tmp_path, "app:processor", "--config", "other.yaml", *backend) as process:
        wait_for(tmp_path, process, "a", "completed", *backend)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert f"settings: {tmp_path}/other.yaml" in log
    assert not (tmp_path / "nimburion.db").exists()


def test_a_worker_ends_by_itself(tmp_path: Path) -> None:
    """After one job of two, and when nothing is left."""
    (tmp_path / "app.py").write_text(APPLICATION)
    for job_id in ("a", "b"):
        arguments = ["--args", '{"a": 1, "b": 2}', "--queue", "sums", "--id", job_id]
        assert run(tmp_path, "enqueue", "add", *arguments).returncode == 0
    left = []
    for option in (["--jobs", "1"], ["--burst"]):
        assert run(tmp_path, "worker", "app:processor", *option).returncode == 0
        queues = json.loads(run(tmp_path, "queues", "list", "--json").stdout)
        left.append(sum(queue["size"] for queue in queues))
    assert left == [1, 0]


def test_a_backend_that_the_application_would_not_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from nimburion.backends import open_backend\nfrom nimburion.jobs import Processor\n"
        "processor = Processor(open_backend('sqlite:///own.db'))\n"
    )
    result = run(tmp_path, "worker", "app:processor", "--backend", "sqlite:///other.db")
    assert result.returncode == 2
    assert result.stderr == (
        f"nimburion: the processor opens its own backend (SQLite {tmp_path}/own.db); "
        "leave out --backend\n"
    )


def test_an_application_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import no_such_library\n")
    result = run(tmp_path, "worker", "app:processor")
    assert result.returncode == 1
    assert result.stderr == (
        "nimburion: app cannot be imported: ModuleNotFoundError: No module named "
        "'no_such_library' (app.py, line 1); --traceback shows more\n"
    )


@pytest.mark.slow
def test_the_demo_accounts_for_every_job(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = run(tmp_path, "demo", "--keep", str(folder))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every job is accounted for" in result.stdout
    assert "kill -9" in result.stdout
    for what in ("rescued ", "retrying ", "failed ", "completed ", "the same id"):
        assert what in result.stdout
    assert len(list((folder / "mail" / "new").iterdir())) >= 12
    check_demo_backend(folder)


def check_demo_backend(folder: Path) -> None:
    """The commands that the demo recommends show the same numbers as the demo."""
    jobs = json.loads(run(folder, "jobs", "list", "--limit", "1000", "--json").stdout)["jobs"]
    states = [job["state"] for job in jobs]
    assert (len(jobs), states.count("completed"), states.count("cancelled")) == (39, 37, 1)
    (dead,) = json.loads(run(folder, "dead", "list", "--json").stdout)["jobs"]
    assert (dead["name"], dead["reason"]) == ("send_email", "unreadable")
    lost = [job for job in jobs if any(one["kind"] == "lost" for one in job["history"])]
    assert len(lost) >= 2
    # The killed worker may have held the unreadable email too; everything else was run again.
    assert {job["state"] for job in lost if job["id"] != dead["id"]} == {"completed"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_broken_off_leaves_no_process(
    number: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [*COMMAND, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout
        line = next(line for line in process.stdout if "two workers started" in line)
        workers = [int(word) for word in line.split() if word.isdecimal()]
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors.strip()) == (130, "")
    assert len(workers) == 2
    assert not [pid for pid in workers if is_alive(pid)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.wide
def test_the_demo_prints_json_for_machines(tmp_path: Path) -> None:
    result = run(tmp_path, "demo", "--keep", str(tmp_path / "d"), "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["ok"] is True
    assert printed["jobs"][-1]["name"] == "total"
    assert printed["jobs"][-1]["enqueued"] == 39


def worker(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a worker."""
    return subprocess.Popen(
        [*COMMAND, "worker", *arguments], cwd=folder, stderr=subprocess.PIPE, text=True
    )


def wait_for(
    folder: Path, process: subprocess.Popen[str], job_id: str, state: str, *backend: str
) -> dict[str, object]:
    """Ask for a job until it is in this state; each question takes a process its time."""
    printed: dict[str, object] = {}
    for _ in range(100):
        printed = json.loads(run(folder, "status", job_id, "--json", *backend).stdout)
        if printed["state"] == state:
            return printed
        assert process.poll() is None, process.stderr and process.stderr.read()
    process.kill()
    raise AssertionError(f"job {job_id} is {printed['state']}, not {state}")


def is_alive(pid: int) -> bool:
    """Whether a process of that id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
