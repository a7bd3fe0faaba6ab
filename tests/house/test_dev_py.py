"""dev.py starts on old Pythons, says what it can do, and renews .venv when it must."""

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
    assert ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7)).body


def test_old_pythons_find_a_newer_one() -> None:
    newest = dev.find_base_python()
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


def test_the_help_names_both_commands() -> None:
    result = call()
    assert result.returncode == 0
    assert "python3 dev.py demo " in result.stdout
    assert "python3 dev.py test " in result.stdout


def test_an_unknown_session_is_named_and_fails() -> None:
    command = [sys.executable, "-m", "nox", "--session", "tset"]  # as dev.py calls it
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "tset" in result.stderr


def test_the_stamp_follows_what_it_stands_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(dev, "ROOT", str(tmp_path))
    before = dev.expected_stamp("dev")
    assert dev.expected_stamp("dev") == before != dev.expected_stamp("demo")
    with (tmp_path / "requirements" / "dev.txt").open("a") as file:
        file.write("\n")
    assert dev.expected_stamp("dev") != before


@pytest.mark.parametrize("own", [True, False], ids=["in .venv", "on PATH"])
def test_where_uv_cannot_install_pip_does(
    own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripts, elsewhere = tmp_path / "scripts", tmp_path / "elsewhere"
    monkeypatch.setattr(dev, "SCRIPTS", str(scripts))
    monkeypatch.setenv("PATH", f"{elsewhere}{os.pathsep}{os.environ['PATH']}")
    uv = write_program(scripts if own else elsewhere, "uv", "exit 2")
    write_program(scripts, "pip", f'echo "$@" > {tmp_path}/installed')
    monkeypatch.setattr(dev, "find_pip", lambda: [str(scripts / "pip"), "install"])
    dev.install(["-r", "list.txt"])
    assert (tmp_path / "installed").read_text() == "install -r list.txt\n"
    assert uv.exists() is not own, "a uv that cannot install stays in .venv"


def write_program(folder: Path, name: str, code: str) -> Path:
    """Write a shell script that can be executed."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path
