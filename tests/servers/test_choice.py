"""A run holds the tests of the servers that it asks for, no others, and says what ran."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.house.tree import ROOT

pytestmark = pytest.mark.timeout(180)  # it runs pytest, which reads all tests, again and again


def run_pytest(kinds: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on this folder, for these kinds of servers."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=ROOT,
        env={**os.environ, "NB_TEST_SERVERS": kinds},
        capture_output=True,
        text=True,
        check=False,
    )


def collect_tests(kinds: str, *arguments: str) -> set[str]:
    """The kinds that stand in the names of the tests that pytest would run here."""
    listed = run_pytest(kinds, "--collect-only", *arguments, "tests/servers/test_servers.py")
    assert listed.returncode == 0, listed.stdout
    names = [line for line in listed.stdout.splitlines() if "test_each_kind" in line]
    return {name.partition("[")[2].rstrip("]") for name in names}


def test_only_requested_kinds_are_collected() -> None:
    assert collect_tests("valkey-cluster,valkey", "-m", "server") == {"valkey", "valkey-cluster"}
    assert collect_tests("valkey", "-m", "not server") == set()


@pytest.mark.wide
def test_kinds_can_deal_the_contract_out(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {case for _, case in count_cases("valkey")}
    monkeypatch.setenv("NB_TEST_DEALT", KINDS)
    dealt = count_cases(KINDS)
    assert {kind for kind, _ in dealt} == {*KINDS.split(",")}
    assert sorted(case for _, case in dealt) == sorted(alone)
    monkeypatch.setenv("NB_TEST_SHARE", "4")
    share = count_cases(KINDS)
    assert {*share} < {*dealt}
    assert {kind for kind, _ in share} == {*KINDS.split(",")}
    assert len(dealt) / 8 < len(share) < len(dealt) / 2


@pytest.mark.wide
def test_a_share_of_the_contract_runs_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        listed = run_pytest("valkey", "--collect-only", "tests/contract/test_memory.py").stdout
        return listed.count("test_memory.py::")

    whole = count()
    monkeypatch.setenv("NB_TEST_SHARE", "4")
    assert whole / 8 < count() < whole / 2


@pytest.mark.wide
def test_long_tests_and_those_of_connections_are_all_dealt_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NB_TEST_DEALT", KINDS)
    paths = {
        "tests/crash/test_poison.py": False,
        "tests/backends/redis/test_connections.py": False,
        "tests/backends/redis/test_runs.py": True,
    }

    def count(path: str) -> int:
        listed = run_pytest(KINDS, "--collect-only", "-m", "server and not deep", path).stdout
        return listed.count("[valkey")

    whole = {path: count(path) for path in paths}
    monkeypatch.setenv("NB_TEST_SHARE", "4")
    for path, is_shared_out in paths.items():
        assert 0 < count(path) <= whole[path]
        assert (count(path) < whole[path]) == is_shared_out, path


KINDS = "valkey,valkey-cluster,valkey-sentinel"


def count_cases(kinds: str) -> list[tuple[str, str]]:
    """Some cases of the contract that would run: the kind, and the rest of the name."""
    tests = "tests/contract/test_redis.py::TestRedis::"
    some = [
        f"{tests}test_a_settlement_writes_only_under_its_whole_token",
        f"{tests}test_a_delay_that_is_no_time_is_refused",
    ]
    listed = run_pytest(kinds, "--collect-only", *some).stdout
    found = [
        re.match(r".*\[(valkey(?:-cluster|-sentinel)?)\b(.*)\]", line)
        for line in listed.splitlines()
    ]
    return [(one[1], one[2]) for one in found if one]


def test_a_kind_that_does_not_exist_ends_the_run() -> None:
    ended = run_pytest("garnet", "tests/servers")
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr.startswith("ERROR: NB_TEST_SERVERS: no kind garnet")


@pytest.mark.wide
def test_the_summary_counts_tests_per_server() -> None:
    ended = run_pytest("valkey", "-k", "each_kind", "tests/servers/test_servers.py")
    assert ended.returncode == 0, ended.stdout
    assert "tests passed by server: Valkey 9" in ended.stdout
