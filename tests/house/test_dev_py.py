"""dev.py starts on old Pythons, says what it can do, and tells the truth about what a run left."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dev
from tests.house.tree import ROOT

VERBS = ["demo", "test", "check", "bench", "deep", "lock", "clean"]
SCRIPT = ROOT / "dev.py"


def call(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run dev.py with arguments."""
    command = [python, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def old_pythons() -> list[str]:
    """Return the interpreters on PATH that are too old for the package but not for dev.py."""
    named = [shutil.which(f"python3.{minor}") for minor in range(6, 11)]
    return [python for python in named if python and starts(python)]


def starts(python: str) -> bool:
    """Tell whether an interpreter starts at all (a version manager's shim may not)."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def test_it_parses_as_old_python() -> None:
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_old_pythons_find_a_newer_one() -> None:
    newest = dev.base_python()
    path = os.pathsep.join([str(Path(newest).parent), os.environ["PATH"]])
    for python in old_pythons():
        result = subprocess.run(
            [python, str(SCRIPT), "help"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": path},
        )
        assert (result.returncode, result.stderr) == (0, ""), python


def test_an_old_python_alone_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dev.main(["test"]) == 1
    assert "Python 3.11 or newer is needed, this is 3.9" in capsys.readouterr().err


def test_the_help_lists_each_verb() -> None:
    result = call()
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if line[:2] == "  "] == VERBS


def test_an_unknown_verb_is_one_line_on_standard_error() -> None:
    result = call("tset")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "dev.py: no verb 'tset'; there are " + ", ".join(VERBS),
    ]


def test_a_failed_check_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert not dev.passes("types", [sys.executable, "-c", "raise SystemExit('what is wrong')"])
    assert "what is wrong" in capsys.readouterr().out
    assert dev.report(["types"], 0.0) == 1
    assert dev.report([], 0.0) == 0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux tells of processes")
def test_a_process_that_outlives_a_run_is_ended_and_named() -> None:
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    environment = {**os.environ, dev.RUN_MARK: "planted"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        left = dev.end_processes("planted", patience=0)
        assert process.wait(timeout=10) != 0
    assert [f"process {process.pid}: " in one for one in left] == [True]
    assert dev.processes_of("planted") == {}


def test_a_file_that_a_run_leaves_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "jobs.db").touch()
    assert dev.left_files(str(tmp_path)) == ["file jobs.db"]


def test_the_stamp_follows_what_it_stands_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(dev, "ROOT", str(tmp_path))
    before = dev.stamp("dev")
    assert dev.stamp("dev") == before != dev.stamp("demo")
    with (tmp_path / "requirements" / "dev.txt").open("a") as file:
        file.write("\n")
    assert dev.stamp("dev") != before
