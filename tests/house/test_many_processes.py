"""Runs in several processes report each test, and end with short ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.house.tree import ROOT

ENDS = """
import pytest

@pytest.fixture
def broken_before():
    raise ValueError

@pytest.fixture
def broken_after():
    yield
    raise ValueError

def test_passes(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("planted")
def test_is_not_set_up(broken_before): pass
def test_is_not_torn_down(broken_after): pass
"""
LONG = """
import pytest

@pytest.mark.slow
@pytest.mark.parametrize("n", range(10))
def test_long(n): pass

@pytest.mark.parametrize("n", range(40))
def test_other(n): pass
"""
SHORT = """
import pytest

@pytest.mark.parametrize("n", range(400))
def test_short(n): pass
"""
SHARED = """
import pytest

@pytest.fixture(scope="module")
def shared(): pass

@pytest.mark.parametrize("n", range(40))
def test_shared(n, shared): pass
"""


def run_pytest(folder: Path, processes: int, *options: str) -> str:
    """Run the tests in this folder; what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-n", str(processes), "--maxschedchunk", "1"]
    command += ["-p", "tests.many_processes", "-p", "no:cacheprovider", *options]
    command += ["--basetemp", str(folder / "base"), "--rootdir", str(folder)]
    command += ["-c", os.devnull, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_each_end_of_a_test_is_reported(tmp_path: Path) -> None:
    (tmp_path / "test_ends.py").write_text(ENDS)
    assert "1 failed, 2 passed, 1 skipped, 2 errors" in run_pytest(tmp_path, 2, "-q")


def test_long_tests_are_spread_and_short_ones_come_last(tmp_path: Path) -> None:
    (tmp_path / "contract").mkdir()
    for name, text in {"test_a": LONG, "contract/test_b": SHORT, "test_c": SHARED}.items():
        (tmp_path / f"{name}.py").write_text(text)
    printed = run_pytest(tmp_path, 1, "-v")
    order = [
        line.split("::")[1].partition("[")[0] for line in printed.splitlines() if "PASSED" in line
    ]
    assert len(order) == 490
    places = {name: [n / 490 for n, one in enumerate(order) if one == name] for name in set(order)}
    assert places["test_long"][0] < 0.3
    assert 0.5 < places["test_long"][-1] < 0.85
    assert 0.5 < places["test_other"][-1] < 0.95
    assert places["test_short"][0] < 0.1
    assert order[-1] == "test_short"
    assert "-".join(["test_shared"] * 40) in "-".join(order)
