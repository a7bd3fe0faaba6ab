"""The Dockerfile has the form that the docs promise, and its command runs as process 1."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.deploy.exit_codes import read_documented_codes
from tests.house.tree import ROOT
from tests.waiting import block_until

DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
DEADLINE = 40.0
"""Seconds in which several processes have started, on a busy machine too."""
SCRIPTS = str(Path(sys.executable).parent)
NAMESPACE = [
    *("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"),
]
"""The command that follows is process 1 of a namespace, as in a container."""

APPLICATION = """
from pathlib import Path

from nimburion import config
from nimburion.jobs import Processor

processor = Processor.from_config(config.load())


@processor.job()
def wait() -> str:
    Path("started").touch()
    return Path("go").read_text()
"""
"""`go` is a pipe: the job ends when the test writes to it."""
IMPORTING = """
from pathlib import Path

Path("started").touch()
Path("go").read_text()
"""


class Instruction(NamedTuple):
    """One instruction of a Dockerfile."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of an instruction in exec form; a shell form is an error."""
        words = json.loads(self.text)
        assert isinstance(words, list)
        return words


def parse_dockerfile(text: str) -> list[Instruction]:
    """Return the instructions in order; a line without one is an error."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [re.fullmatch(r"([A-Z]+) (\S.*)", line) for line in joined.splitlines() if line]
    assert None not in found, joined
    return [Instruction(match[1], match[2]) for match in found if match]


INSTRUCTIONS = parse_dockerfile(DOCKERFILE.read_text(encoding="utf-8"))


def get_last(name: str) -> Instruction:
    """Return the last instruction of this name, which is the one that counts."""
    return [one for one in INSTRUCTIONS if one.name == name][-1]


def has_namespaces() -> bool:
    """Whether this user may create namespaces here."""
    program = shutil.which("unshare")
    if program is None:
        return False
    result = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False, timeout=50)
    return result.returncode == 0


as_process_1 = pytest.mark.skipif(
    not has_namespaces(), reason="this user may not create process namespaces"
)


def test_the_image_is_built_in_two_stages_and_runs_without_root() -> None:
    names = [one.name for one in INSTRUCTIONS]
    assert names.count("FROM") == 2
    final = INSTRUCTIONS[len(names) - 1 - names[::-1].index("FROM") :]
    assert "RUN" not in [one.name for one in final]
    user, group = get_last("USER").text.split(":")
    assert int(user) > 0
    assert int(group) > 0
    copied = [one.text for one in final if one.name == "COPY"]
    assert copied == ["--from=build /srv/venv /srv/venv", ". ."]  # owned by root
    assert "MALLOC_ARENA_MAX=2" in get_last("ENV").text


def test_process_1_is_the_worker_itself() -> None:
    assert get_last("ENTRYPOINT").words == ["nimburion"]
    assert get_last("CMD").words[:2] == ["worker", "myapp:processor"]
    assert get_last("STOPSIGNAL").text == "SIGTERM"


@pytest.mark.parametrize("text", ["CMD nimburion worker", "FROM a\nfrom b"])
def test_a_wrong_dockerfile_is_seen(text: str) -> None:
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        assert [one.words for one in parse_dockerfile(text)]


@as_process_1
def test_process_1_drains_at_sigterm(tmp_path: Path) -> None:
    """The running job ends within its grace time, and the exit code is 0."""
    nimburion(tmp_path, "enqueue", "wait", "--id", "a")
    with run_container(tmp_path) as container:
        block_until((tmp_path / "started").exists, "the job runs", DEADLINE)
        (worker,) = json.loads(nimburion(tmp_path, "workers", "list", "--json"))
        assert worker["pid"] == 1
        find_process_1(container).send_signal(signal.SIGTERM)
        (tmp_path / "go").write_text("done")
        _, log = container.communicate(timeout=DEADLINE)
    assert container.returncode == 0, log
    assert json.loads(nimburion(tmp_path, "status", "a", "--json"))["result"] == "done"
    assert [json.loads(line)["level"] for line in log.splitlines()].count("error") == 0


@as_process_1
def test_process_1_drains_its_processes_at_sigterm(tmp_path: Path) -> None:
    """With `--processes`, the supervisor is process 1."""
    nimburion(tmp_path, "enqueue", "wait", "--id", "a")
    with run_container(tmp_path, "--processes", "2") as container:
        block_until((tmp_path / "started").exists, "the job runs", DEADLINE)
        find_process_1(container).send_signal(signal.SIGTERM)
        (tmp_path / "go").write_text("done")
        _, log = container.communicate(timeout=DEADLINE)
    assert container.returncode == 0, log
    assert json.loads(nimburion(tmp_path, "status", "a", "--json"))["result"] == "done"


@as_process_1
def test_process_1_stops_at_once_at_the_second_sigterm(tmp_path: Path) -> None:
    """The job is released, and counts nothing."""
    nimburion(tmp_path, "enqueue", "wait", "--id", "a")
    with run_container(tmp_path) as container:
        block_until((tmp_path / "started").exists, "the job runs", DEADLINE)
        process = find_process_1(container)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        _, log = container.communicate(timeout=DEADLINE)
    assert container.returncode == 0, log
    status = json.loads(nimburion(tmp_path, "status", "a", "--json"))
    assert (status["state"], status["failures"], status["lost"]) == ("pending", 0, 0)


@as_process_1
def test_process_1_ends_at_sigterm_while_it_imports_the_application(tmp_path: Path) -> None:
    """The kernel drops a signal to process 1 that has no handler."""
    (tmp_path / "myapp.py").write_text(IMPORTING)
    with run_container(tmp_path, write_application=False) as container:
        block_until((tmp_path / "started").exists, "the application is imported", DEADLINE)
        find_process_1(container).send_signal(signal.SIGTERM)
        container.communicate(timeout=DEADLINE)
    assert container.returncode == 143


def break_application(folder: Path) -> None:
    (folder / "myapp.py").write_text("import no_such_library\n")


def break_settings(folder: Path) -> None:
    (folder / "config.yaml").write_text("jobs:\n  concurency: 3\n")


def break_backend(folder: Path) -> None:
    (folder / "nimburion.db").write_bytes(b"this is no database at all, but a long text" * 99)


STARTS = {1: break_application, 2: break_settings, 3: break_backend}


@as_process_1
@pytest.mark.parametrize("code", STARTS)
def test_the_exit_code_says_why_a_worker_did_not_start(code: int, tmp_path: Path) -> None:
    (tmp_path / "myapp.py").write_text(APPLICATION)
    STARTS[code](tmp_path)
    with run_container(tmp_path, write_application=False) as container:
        _, log = container.communicate(timeout=DEADLINE)
    assert container.returncode == code, log
    assert log.splitlines()[-1].startswith("nimburion: ")


def test_the_page_lists_the_exit_codes() -> None:
    assert read_documented_codes() >= {0, *STARTS, 137, 143}


class Process1(NamedTuple):
    """Process 1 of a namespace, by its id outside."""

    pid: int

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, as the runtime of a container does."""
        os.kill(self.pid, number)


def find_process_1(container: subprocess.Popen[str]) -> Process1:
    """Return the process that `unshare` started."""
    path = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    (pid,) = path.read_text().split()
    return Process1(int(pid))


@contextmanager
def run_container(
    folder: Path, *options: str, write_application: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """Run entry point and command of the image in a process namespace, with any free port."""
    os.mkfifo(folder / "go")
    if write_application:
        (folder / "myapp.py").write_text(APPLICATION)
    command = [*NAMESPACE, *get_last("ENTRYPOINT").words, *get_last("CMD").words, *options]
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, env=make_environment()
    ) as container:
        try:
            yield container
        finally:
            container.kill()  # and with it, process 1 of the namespace


def nimburion(folder: Path, *arguments: str) -> str:
    """Run a command outside of the container and return what it prints."""
    command = ["nimburion", *arguments]
    result = subprocess.run(
        command, cwd=folder, env=make_environment(), capture_output=True, text=True, check=True
    )
    return result.stdout


def make_environment() -> dict[str, str]:
    """Return the environment of the image, as far as it matters here."""
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "NIMBURION_SERVER__PORT": "0"}
