"""What `--save` keeps of a run."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.chaos.fault_plan import Size
from benchmarks.chaos.reconcile import Reconciliation
from benchmarks.chaos.report import LIMITS, keep
from benchmarks.chaos.run import RunOutcome

NOTE = "The load was 20 by other programs.\n"


def make_run(acknowledged: int) -> RunOutcome:
    found = msgspec.structs.replace(Reconciliation(), acknowledged=acknowledged)
    return RunOutcome("SQLite", 1, Size(), {}, 1.0, found)


def read_page(results: Path) -> str:
    return next(results.glob("*.md")).read_text()


def test_a_saved_run_leaves_what_was_written_by_hand(tmp_path: Path) -> None:
    keep("sqlite", "Commit a.", make_run(1_111), tmp_path)
    page = next(tmp_path.glob("*.md"))
    page.write_text(NOTE + page.read_text().replace(LIMITS, f"{NOTE}\n{LIMITS}"))
    keep("redis", "Commit b.", make_run(2_222), tmp_path)
    keep("sqlite", "Commit c.", make_run(3_333), tmp_path)
    text = read_page(tmp_path)
    assert text.count(NOTE) == 2
    assert text.startswith(NOTE)
    assert text.endswith(LIMITS)
    assert text.count(LIMITS) == 1
    assert text.index("Commit c.") < text.index("Commit b.")


def test_a_saved_run_replaces_the_one_of_its_kind(tmp_path: Path) -> None:
    keep("sqlite", "Commit a.", make_run(1_111), tmp_path)
    keep("sqlite", "Commit c.", make_run(3_333), tmp_path)
    text = read_page(tmp_path)
    assert "1,111" not in text
    assert "Commit a." not in text
    assert "3,333 jobs" in text


def test_a_page_without_limits_gets_the_run_at_its_end(tmp_path: Path) -> None:
    keep("sqlite", "Commit a.", make_run(1_111), tmp_path)
    next(tmp_path.glob("*.md")).write_text(NOTE)
    keep("redis", "Commit b.", make_run(2_222), tmp_path)
    assert read_page(tmp_path).startswith(f"{NOTE}\nCommit b.")
