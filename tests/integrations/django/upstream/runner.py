"""The test runner that leaves out what a backend with workers cannot meet."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Iterator
from typing import Any

from django.test.runner import DiscoverRunner

_DUMMY, _IMMEDIATE = "tasks.test_dummy_backend.Dummy", "tasks.test_immediate_backend.Immediate"
_CHANGES_LIST = "changes the list of the dummy backend to pretend that a worker ran the task"
_DOES_MORE = "expects that the immediate backend cannot do this; ours can"
_TRANSACTION = "expects a task to exist before its transaction commits; ours follow transactions"

LEFT_OUT = {
    f"{_DUMMY}BackendTestCase.test_refresh_result": _CHANGES_LIST,
    f"{_DUMMY}BackendTestCase.test_refresh_result_async": _CHANGES_LIST,
    f"{_DUMMY}BackendTransactionTestCase"
    ".test_doesnt_wait_until_transaction_commit_by_default": _TRANSACTION,
    f"{_IMMEDIATE}BackendTransactionTestCase"
    ".test_doesnt_wait_until_transaction_commit_by_default": _TRANSACTION,
    f"{_IMMEDIATE}BackendTestCase.test_cannot_get_result": _DOES_MORE,
    f"{_IMMEDIATE}BackendTestCase.test_cannot_refresh_result": _DOES_MORE,
    f"{_IMMEDIATE}BackendTestCase.test_cannot_pass_run_after": _DOES_MORE,
    f"{_IMMEDIATE}BackendTestCase.test_throws_keyboard_interrupt": (
        "expects no report of the task; ours ends the worker too, and the task counts as failed"
    ),
}
"""Tests of Django that are not run, each with its reason."""


class UpstreamRunner(DiscoverRunner):
    """Runs all tests but those of `LEFT_OUT`, and prints these with their reasons."""

    def build_suite(self, *args: Any, **kwargs: Any) -> unittest.TestSuite:
        found = {test.id(): test for test in list_tests(super().build_suite(*args, **kwargs))}
        missing = LEFT_OUT.keys() - found.keys()
        if missing:
            raise RuntimeError(f"Django has no such tests any more: {', '.join(sorted(missing))}")
        for name, reason in LEFT_OUT.items():
            sys.stderr.write(f"left out: {name}: {reason}\n")
        return unittest.TestSuite(test for name, test in found.items() if name not in LEFT_OUT)


def list_tests(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Return the tests of a suite and of the suites in it."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from list_tests(test)
        else:
            yield test
