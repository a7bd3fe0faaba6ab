"""The values of steps, and what is read of their functions."""

from __future__ import annotations

import gc

from nimburion.jobs.durable import values


def test_what_was_read_of_a_function_is_forgotten_with_it() -> None:
    def count() -> int:
        return 1

    known = len(values._known)
    assert values.read_step_function(count) is values.read_step_function(count)
    assert len(values._known) == known + 1
    del count
    gc.collect()
    assert all(function() is not None for function in values._known)
