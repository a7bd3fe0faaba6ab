"""Helpers for tests: a fake clock, assertions, a pytest plugin, and the contract suite for
backends."""

from nimburion.testing.assertions import assert_enqueued
from nimburion.testing.clock import FakeClock

__all__ = ["FakeClock", "assert_enqueued"]
