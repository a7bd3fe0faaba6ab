"""Helpers for tests: a fake clock, assertions, a pytest plugin, and the contract suite for
backends."""

from nimburion.testing.assertions import assert_enqueued, assert_not_enqueued
from nimburion.testing.clearing import clear_jobs
from nimburion.testing.clock import FakeClock
from nimburion.testing.contexts import make_context

__all__ = ["FakeClock", "assert_enqueued", "assert_not_enqueued", "clear_jobs", "make_context"]
