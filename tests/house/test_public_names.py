"""What `from nimburion import …` offers."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import nimburion
from nimburion.core import errors

RAISED_BY_ACTIONS = {errors.MissingRight, errors.BulkOperationConflict, errors.WorkerNotFound}
"""Errors of what operators do through the API, the dashboard and the commands."""


@pytest.mark.parametrize("name", nimburion.__all__)
def test_each_name_can_be_imported(name: str) -> None:
    assert getattr(nimburion, name) is not None
    assert name in dir(nimburion)


def test_every_error_is_there_itself_or_by_a_more_general_one() -> None:
    public = {getattr(nimburion, name) for name in nimburion.__all__} - {errors.NimburionError}
    defined = [
        one
        for one in vars(errors).values()
        if inspect.isclass(one) and one.__module__ == errors.__name__
    ]
    assert len(defined) > 40
    hidden = {one for one in defined if not public & set(one.__mro__)}
    assert hidden == {errors.NimburionError, *RAISED_BY_ACTIONS}


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
