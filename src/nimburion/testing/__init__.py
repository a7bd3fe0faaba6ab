"""Helpers for tests: a fake clock, assertions, a pytest plugin, and the contract suite for
backends."""

from nimburion.testing.assertions import assert_enqueued, assert_not_enqueued
from nimburion.testing.clearing import clear_jobs
from nimburion.testing.clock import FakeClock
from nimburion.testing.contexts import make_context
from nimburion.testing.crashes import CrashReport, crash_everywhere

__all__ = [
    "CrashReport",
    "FakeClock",
    "assert_enqueued",
    "assert_not_enqueued",
    "clear_jobs",
    "crash_everywhere",
    "make_context",
]
