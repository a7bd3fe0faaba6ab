"""`dev.py test` runs the whole contract on servers where a checkout changes what it is about."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from noxfile import changes_backends

BELOW = "src/nimburion/core/job.py"
ABOVE = "src/nimburion/server/app.py"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two files; its branch is what `origin/main` is."""
    monkeypatch.chdir(tmp_path)
    for name in (BELOW, ABOVE):
        write(tmp_path / name, "1")
    git("init", "--quiet")
    git("add", ".")
    commit()
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    return tmp_path


def test_nothing_below_has_changed(checkout: Path) -> None:
    write(checkout / ABOVE, "2")
    write(checkout / "docs/new.md", "2")
    assert not changes_backends()


@pytest.mark.parametrize("name", [BELOW, "src/nimburion/core/new.py"])
@pytest.mark.parametrize("committed", [False, True])
def test_a_change_below(name: str, checkout: Path, *, committed: bool) -> None:
    write(checkout / name, "2")
    if committed:
        git("add", ".")
        commit()
    assert changes_backends()


def test_a_change_of_the_main_branch_is_none_of_ours(checkout: Path) -> None:
    write(checkout / BELOW, "2")
    git("add", ".")
    commit()
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    git("reset", "--quiet", "--hard", "HEAD~1")
    assert not changes_backends()


def test_without_a_main_branch_anything_may_have_changed(checkout: Path) -> None:
    git("update-ref", "-d", "refs/remotes/origin/main")
    assert changes_backends()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def git(*arguments: str) -> None:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *settings, *arguments], check=True)


def commit() -> None:
    git("commit", "--quiet", "--message", "m")
