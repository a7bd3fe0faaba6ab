"""Type checkers see the arguments of jobs: right code passes, each wrong line is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT

HERE = Path(__file__).parent
EXPECTED = re.compile(r"# expect: ([a-z-]+)$")
REPORTED = re.compile(r"^\S+?:(\d+): error: .*\[([a-z-]+)\]$", re.MULTILINE)


def mypy(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file as `dev.py check` does; what that left in .mypy_cache saves most of the time."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(path),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.timeout(120)
def test_right_code_passes_and_each_wrong_line_is_refused(tmp_path: Path) -> None:
    right = mypy(HERE / "right_jobs.py")
    assert right.returncode == 0, right.stdout + right.stderr

    text = (HERE / "wrong_jobs.txt").read_text(encoding="utf-8")
    wrong = tmp_path / "wrong_jobs.py"
    wrong.write_text(text, encoding="utf-8")
    expected = {
        (number, found[1])
        for number, line in enumerate(text.splitlines(), 1)
        if (found := EXPECTED.search(line))
    }
    result = mypy(wrong)

    reported = {(int(number), code) for number, code in REPORTED.findall(result.stdout)}
    assert len(expected) >= 60
    assert reported == expected, result.stdout + result.stderr
