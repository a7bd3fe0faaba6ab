"""A project made by following a how-to page alone: its file, its two commands, a request."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from tests.docs.pages import read
from tests.house.tree import ROOT

ADDRESS = re.compile(re.escape("http://127.0.0.1:") + r"\d+")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


class Project(NamedTuple):
    """The files of a page, and the commands that it tells people to type."""

    folder: Path
    serve: list[str]
    work: list[str]


def make_project(page: str, folder: Path, backend_url: str) -> Project:
    """Write the first file of a page; only the URL of the backend is another one."""
    blocks = read(ROOT / "docs" / "how-to" / page).blocks
    file = next(block for block in blocks if block.file is not None)
    assert "sqlite:///shop.db" in file.text
    text = file.text.replace("sqlite:///shop.db", backend_url)
    (folder / str(file.file)).write_text(text, encoding="utf-8")
    commands = next(block for block in blocks if block.info == ("sh",)).text.splitlines()
    serve, work = (shlex.split(command) for command in commands)
    return Project(folder, [*serve, "--port", "0"], [*work, "--burst"])


@contextmanager
def serving(project: Project) -> Iterator[str]:
    """Run the application; yield its address."""
    process = subprocess.Popen(
        project.serve,
        cwd=project.folder,
        env={**os.environ, "PATH": PATH, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            seen = []
            for line in process.stdout:
                seen.append(line)
                if found := ADDRESS.search(line):
                    break
            else:
                pytest.fail("".join(seen))
            yield found[0]
        finally:
            process.terminate()
            process.communicate(timeout=30)


def ask(url: str, form: dict[str, str] | None = None) -> Any:
    """Send a request, and return the JSON of the answer."""
    body = None if form is None else urlencode(form).encode()
    with urlopen(Request(url, body, method="GET" if form is None else "POST")) as answer:
        return json.load(answer)


@pytest.mark.wide
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("page", "address_in"),
    [("fastapi.md", "query"), ("flask.md", "form")],
    ids=["fastapi", "flask"],
)
def test_a_project_made_by_the_page_runs_a_job(
    page: str, address_in: str, backend_url: str, tmp_path: Path
) -> None:
    project = make_project(page, tmp_path, backend_url)
    with serving(project) as url:
        address = {"address": "ann@example.com"}
        query = f"?{urlencode(address)}" if address_in == "query" else ""
        job_id = ask(f"{url}/signups{query}", address)["job"]
        assert ask(f"{url}/jobs/{job_id}")["state"] == "pending"
        worker = subprocess.run(
            project.work,
            cwd=tmp_path,
            env={**os.environ, "PATH": PATH},
            capture_output=True,
            text=True,
            check=False,
        )
        assert worker.returncode == 0, worker.stderr
        shown = ask(f"{url}/jobs/{job_id}")
    assert (shown["state"], shown["progress"]) == ("completed", None)
    assert "ann@example.com" in shown["result"]
