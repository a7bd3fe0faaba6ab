"""The page about FastAPI runs its tests on SQLite and in memory; here they run on PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import read
from tests.house.tree import ROOT
from tests.servers.fixtures import StartedServers

FILES = ("store_app.py", "test_store.py")


def test_the_tests_of_the_page_pass_on_postgresql(
    tmp_path: Path, started_servers: StartedServers
) -> None:
    server = started_servers["postgres"]
    server.empty()
    for block in read(ROOT / "docs" / "how-to" / "fastapi.md").blocks:
        if block.file in FILES:
            (tmp_path / block.file).write_text(block.text)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(FILES)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_store.py"]
    ended = subprocess.run(
        tests,
        cwd=tmp_path,
        env={**os.environ, "DATABASE": server.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 passed" in ended.stdout, ended.stdout + ended.stderr
