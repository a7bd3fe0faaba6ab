"""Exceptions that are stored and raised again."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import pytest

from nimburion.core.errors import ChildFailed
from nimburion.jobs.durable.journal import StoredError
from nimburion.jobs.durable.stored_errors import decode_error, encode_error, format_message


class Refused(Exception):
    """An exception whose constructor takes other arguments than its base."""

    def __init__(self, code: int, *, lock: object = None) -> None:
        super().__init__(f"refused with {code}", code)
        self.code = code
        self.lock = lock


class Outer:
    class Inner(Exception):
        pass


class Strange(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def encode_and_raise(error: Exception) -> Exception | None:
    stored = encode_error(error)
    return None if stored is None else decode_error(stored)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 5),
        KeyError("name"),
        OSError(2, "missing"),
        TimeoutError(),
        ChildFailed("j.part.0", "part", "failed", "ValueError: no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_again(error: Exception) -> None:
    again = encode_and_raise(error)
    assert type(again) is type(error)
    assert again is not None
    assert (again.args, str(again)) == (error.args, str(error))
    assert vars(again) == vars(error)


def test_attributes_without_a_json_form_are_left_out() -> None:
    again = encode_and_raise(Refused(51, lock=asyncio.Event))
    assert isinstance(again, Refused)
    assert vars(again) == {"code": 51}


def test_arguments_without_a_json_form_become_the_text() -> None:
    again = encode_and_raise(ValueError(object))
    assert type(again) is ValueError
    assert again.args == (str(object),)


def test_a_class_that_is_not_found_cannot_be_raised_again() -> None:
    class Local(Exception):
        pass

    assert encode_error(Local("no")) is None
    assert encode_error(ExceptionGroup("several", [ValueError("no")])) is None
    assert decode_error(StoredError("Nothing", "builtins")) is None
    assert decode_error(StoredError("print", "builtins")) is None
    assert decode_error(StoredError("KeyboardInterrupt", "builtins")) is None
    assert decode_error(StoredError("X", "a.module.that.is.not.loaded")) is None


def test_reading_an_error_runs_no_code_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str) -> type[Exception]:
        asked.append(name)
        return Refused

    module = ModuleType("lazy_module")
    vars(module)["__getattr__"] = load
    monkeypatch.setitem(sys.modules, "lazy_module", module)
    assert decode_error(StoredError("Refused", "lazy_module")) is None
    assert asked == []


def test_a_class_in_a_class_is_found() -> None:
    assert type(encode_and_raise(Outer.Inner("no"))) is Outer.Inner


def test_an_error_without_a_text() -> None:
    assert format_message(Strange()) == ""
    assert type(encode_and_raise(Strange())) is Strange
    assert len(format_message(ValueError("x" * 10_000))) == 4_096
