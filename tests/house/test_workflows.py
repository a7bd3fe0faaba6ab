"""The workflows run sessions that exist, with no right that a job does not need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.tree import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITES = {
    "release.yml": {
        "build": {"id-token", "attestations"},
        "publish": {"id-token"},
        "announce": {"contents"},
    },
    "docs.yml": {"publish": {"pages", "id-token"}},
}
"""The jobs that may write, and what."""


def read_workflow(path: Path) -> dict[str, Any]:
    """Parse a workflow; YAML reads its key `on` as True."""
    workflow: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return workflow


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_runs_sessions_that_exist(path: Path) -> None:
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = set(re.findall(r"@nox\.session\ndef (\w+)", noxfile)) | {"test", "demo"}
    named = set(re.findall(r"python3 dev\.py (\w+)", path.read_text(encoding="utf-8")))
    assert named <= sessions


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_job_has_no_right_that_it_does_not_need(path: Path) -> None:
    workflow = read_workflow(path)
    assert "write" not in workflow["permissions"].values()
    granted = {
        name: {right for right, access in job.get("permissions", {}).items() if access == "write"}
        for name, job in workflow["jobs"].items()
    }
    assert {name: rights for name, rights in granted.items() if rights} == WRITES.get(path.name, {})
    assert "secrets." not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit(path: Path) -> None:
    """A tag can be moved to other code; the comment names the release."""
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert used != []
    assert [use for use in used if not re.fullmatch(r"\S+@[0-9a-f]{40}  # v[0-9.]+", use)] == []


def test_only_a_tag_publishes() -> None:
    release = read_workflow(ROOT / ".github" / "workflows" / "release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}  # type: ignore[index]
    docs = read_workflow(ROOT / ".github" / "workflows" / "docs.yml")
    assert docs["jobs"]["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
