"""A test run that leaves processes or files behind is found out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leftovers
from tests.house.tree import ROOT


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc, as Linux has")
def test_a_process_that_outlives_a_run_is_ended_and_named() -> None:
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    environment = {**os.environ, leftovers.RUN_MARK: "planted"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        left = leftovers.end_processes("planted", grace=0)
        assert process.wait(timeout=10) != 0
    assert [f"process {process.pid}: " in one for one in left] == [True]
    assert leftovers.find_processes("planted") == {}


def test_a_file_that_a_run_leaves_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "jobs.db").touch()
    assert leftovers.left_files(tmp_path) == ["file jobs.db"]


def test_a_run_that_leaves_a_file_fails(tmp_path: Path) -> None:
    test = tmp_path / "test_planted.py"
    test.write_text("import tempfile\n\ndef test_it():\n    tempfile.mkstemp(prefix='planted-')\n")
    environment = {k: v for k, v in os.environ.items() if k != leftovers.RUN_MARK}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.leftovers",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--rootdir", str(tmp_path), "-c", os.devnull, str(test)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert "1 passed" in result.stdout
    assert "left behind: file planted-" in result.stdout
    assert result.returncode == 1
