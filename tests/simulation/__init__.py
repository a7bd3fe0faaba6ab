"""Asserts of the machinery are explained as those of tests."""

import pytest

pytest.register_assert_rewrite(
    "tests.simulation.ledger", "tests.simulation.faults", "tests.simulation.world"
)
