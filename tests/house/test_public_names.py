"""What `from nimburion import …` offers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest

import nimburion
from nimburion import errors
from nimburion.core import errors as core_errors
from nimburion.jobs.options.enqueue_options import EnqueueOptions
from nimburion.jobs.options.policy import POLICY_OPTIONS
from website.names import Row, list_groups, list_rows

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


def test_a_job_has_at_most_20_options_and_an_enqueue_18() -> None:
    assert len({"name", "queue", *POLICY_OPTIONS}) <= 20
    assert len(EnqueueOptions.__annotations__) <= 18


ROWS = [
    row for _, names in list_groups() for name, value in names for row in list_rows(name, value)
]


def test_each_public_name_has_a_docstring() -> None:
    assert [row.name for row in ROWS if not row.docstring.strip()] == []


def test_each_public_name_has_types() -> None:
    assert [name for row in ROWS for name in list_untyped(row)] == []


def test_a_name_without_types_is_found() -> None:
    rows = [
        Row("Job.send", ("(to, *args, key: int=1, **options) -> None",), "Send."),
        Row("Job.stop", ("async (grace: float)",), "Stop."),
        Row("Job.name", ("",), "The name."),
        Row("Job.queue", (": str = 'default'",), "The queue."),
    ]
    found = [name for row in rows for name in list_untyped(row)]
    assert found == ["Job.send: to", "Job.send: args", "Job.send: options", "Job.stop", "Job.name"]


def list_untyped(row: Row) -> Iterator[str]:
    """Yield the parameters of a name that have no type, or the name if it has none itself."""
    is_member = "." in row.name
    for signature in row.signatures:
        text = signature.removeprefix("async").strip()
        if not text.startswith("("):
            if is_member and not text:
                yield row.name
            continue
        if not is_member and "->" not in text and ":" not in text:
            continue  # the bases of a class
        (function,) = ast.parse(f"def name{text}: ...").body
        assert isinstance(function, ast.FunctionDef)
        given = function.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        yield from (
            f"{row.name}: {one.arg}" for one in every if one is not None and one.annotation is None
        )
        if is_member and function.returns is None:
            yield row.name


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
