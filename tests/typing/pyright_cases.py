"""What pyright says of right and wrong programs: `python3 dev.py pyright`. It needs Node.

The marks of `wrong_jobs.txt` name mypy's errors; pyright must refuse the same lines, whatever it
calls its errors.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.tree import ROOT
from tests.typing.test_typing import EXPECTED, HERE

PYRIGHT = os.environ.get("NB_TEST_PYRIGHT", "pyright@1.1.414")


def find_refused_lines(path: Path, folder: Path) -> set[int]:
    """Return the numbers of the lines of a program in which pyright finds an error."""
    settings = {
        "include": [str(path)],
        "extraPaths": [str(ROOT / "src")],
        "pythonVersion": "3.11",
        "typeCheckingMode": "standard",
        "reportUnusedCoroutine": "error",
    }
    configuration = folder / "pyrightconfig.json"
    configuration.write_text(json.dumps(settings), encoding="utf-8")
    npx = shutil.which("npx") or "npx"
    command = [npx, "--yes", PYRIGHT, "--outputjson", "--pythonpath", sys.executable]
    result = subprocess.run(
        [*command, "--project", str(configuration)], capture_output=True, text=True, check=False
    )
    found = json.loads(result.stdout)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}


def test_right_code_passes(tmp_path: Path) -> None:
    assert find_refused_lines(HERE / "right_jobs.py", tmp_path) == set()


def test_each_wrong_line_is_refused(tmp_path: Path) -> None:
    text = (HERE / "wrong_jobs.txt").read_text(encoding="utf-8")
    wrong = tmp_path / "wrong_jobs.py"
    wrong.write_text(text, encoding="utf-8")
    expected = {number for number, line in enumerate(text.splitlines(), 1) if EXPECTED.search(line)}
    assert len(expected) >= 60
    assert find_refused_lines(wrong, tmp_path) == expected
