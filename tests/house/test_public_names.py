"""What `from nimburion import …` offers."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import nimburion
from nimburion import errors
from nimburion.core import errors as core_errors

MORE_PRECISE = {"EnqueueBlocked", "NotDeadLetter", "PastTime"}
"""Errors for the code of nimburion. Users catch the more general ones, which have these names:
`BackendUnavailable`, `JobNotFound` and `InvalidJob`.
"""


@pytest.mark.parametrize("name", nimburion.__all__)
def test_each_name_can_be_imported(name: str) -> None:
    assert getattr(nimburion, name) is not None
    assert name in dir(nimburion)


def test_there_are_at_most_36_names() -> None:
    assert len(nimburion.__all__) <= 36


def test_every_error_has_one_place() -> None:
    """What handlers raise is in `nimburion`, every other error in `nimburion.errors`."""
    defined = {
        name
        for name, value in vars(core_errors).items()
        if inspect.isclass(value) and value.__module__ == core_errors.__name__
    }
    raised = {"Cancel", "PermanentError", "RateLimitExceeded", "Retry", "Snooze"}
    assert len(defined) > 40
    assert raised == defined & {*nimburion.__all__}
    assert {*errors.__all__} == defined - raised - MORE_PRECISE
    assert all(getattr(errors, name) is getattr(core_errors, name) for name in errors.__all__)


def test_the_names_of_the_specification_are_there() -> None:
    assert {"Job", "job", "Processor", "Scheduler", "Priority", "State", "config"} <= set(
        nimburion.__all__
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nimburion' has no attribute 'Jobs'"):
        getattr(nimburion, "Jobs")  # noqa: B009 (the name is what is tested)


def test_importing_the_package_loads_none_of_its_modules() -> None:
    code = "import sys, nimburion; print([m for m in sys.modules if m.startswith('nimburion.')])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
