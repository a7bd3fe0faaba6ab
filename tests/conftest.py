"""For every test: hypothesis profiles, a clean environment, and a word on what a run ran."""

from __future__ import annotations

import gc
import os
import platform
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

pytest_plugins = ["tests.leftovers", "tests.servers.fixtures"]

# Here and not in the package: its processes need no pytest, and start sooner.
pytest.register_assert_rewrite("tests.crash.harness")

# The usual run tries the same examples each time, so that one commit is green or red for all;
# `dev.py deep` looks for new ones. Hypothesis would also try constants that it finds in the source
# of the modules that are loaded, and which those are depends on the tests that ran before.
assert hasattr(providers, "_get_local_constants"), "Hypothesis has renamed it"
setattr(providers, "_get_local_constants", Constants)  # noqa: B010 - a private name
hypothesis.settings.register_profile("quick", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.register_profile(
    "deep", deadline=None, print_blob=True, max_examples=2_000, stateful_step_count=100
)
hypothesis.settings.load_profile("quick")  # --hypothesis-profile=deep comes later and wins

BACKENDS = Path(__file__).parent.parent / "src" / "nimburion" / "backends"


def pytest_configure() -> None:
    """Forget the settings of the shell that the tests are run from.

    A shell without job control starts background commands with SIGINT ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("NIMBURION_")]:
        del os.environ[name]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Collect without looking for garbage, and leave what was collected out of later searches: it
    lives as long as the run, and searching it takes a third of the time to collect it.

    Then search less often than Python does: a test makes little garbage, and the searches take a
    tenth of its CPU time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long tests first: a long one at the end would leave the other workers without work."""
    items.sort(key=lambda item: "slow" not in item.keywords)


def pytest_report_header() -> str:
    """Name the versions that this run is about."""
    return f"python {platform.python_version()}, sqlite {sqlite3.sqlite_version}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which backends passed how many contract cases: only these may be called supported."""
    passed = Counter(
        found[1]
        for report in terminalreporter.stats.get("passed", [])
        if (found := re.match(r"tests/contract/test_([a-z]+)", report.nodeid))
    )
    counts = ", ".join(f"{name} {passed[name]}" for name in list_backends() if passed[name])
    terminalreporter.write_line(f"contract cases passed by backend: {counts or 'none in this run'}")
    for name, count in sorted(totals_of(terminalreporter).items()):
        terminalreporter.write_line(f"{name}: {count}")


def totals_of(terminalreporter: pytest.TerminalReporter) -> Counter[str]:
    """Add up what tests recorded under names that hold the word `total`."""
    totals: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        totals.update({name: int(n) for name, n in report.user_properties if " total" in name})
    return totals


def list_backends() -> list[str]:
    """Return the names of the backends in the source tree."""
    return sorted(path.stem for path in BACKENDS.glob("[a-z]*"))
