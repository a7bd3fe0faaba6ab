"""The contract of a backend has no more operations than its budget."""

from __future__ import annotations

from tests.budgets.contract import list_operations

BUDGET = 55


def test_the_contract_has_no_more_operations_than_its_budget() -> None:
    found = list_operations()
    assert found["Producing"] == ["enqueue", "cancel", "send_signals", "fire"]
    assert sum(map(len, found.values())) == BUDGET, found
