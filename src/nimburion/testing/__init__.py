"""For tests of applications: a clock to move by hand, assertions, a pytest plugin; and the contract
suite that every backend passes."""

from nimburion.testing.assertions import assert_enqueued
from nimburion.testing.clock import FakeClock

__all__ = ["FakeClock", "assert_enqueued"]
