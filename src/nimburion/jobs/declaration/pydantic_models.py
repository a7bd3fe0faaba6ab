"""pydantic models as guests: known by their face, so that pydantic is never imported here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from nimburion.jobs.declaration.json_values import check_json_value

_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (list, list),
    (dict, dict),
)
_MODEL_ATTRIBUTES = ("model_dump", "model_validate_json", "__pydantic_serializer__")


def is_pydantic_model(kind: object) -> bool:
    """Whether `kind` is a pydantic model class."""
    return isinstance(kind, type) and all(hasattr(kind, name) for name in _MODEL_ATTRIBUTES)


def enc_hook(value: Any) -> Any:  # noqa: ANN401 (msgspec's hook)
    """What msgspec does not know (`enc_hook`): a guest as plain JSON values, by alias; an instance
    of a subclass of a built-in type (Markup, a NumPy float) as one of that type. Else `TypeError`.
    """
    if is_pydantic_model(type(value)):
        check_json_value(value.model_dump(warnings=False))
        return value.model_dump(mode="json", by_alias=True, warnings=False)
    for kind, plainly in _BASES:
        if isinstance(value, kind):
            return plainly(value)
    raise TypeError(f"{type(value).__qualname__} cannot travel as JSON")


def dec_hook(kind: Any, value: Any) -> Any:  # noqa: ANN401 (msgspec's hook)
    """Msgspec's `dec_hook`: a guest from plain JSON values. `ValueError` says what does not fit."""
    if kind is object:
        return value
    try:
        return kind.model_validate_json(msgspec.json.encode(value))
    except ValueError as error:
        raise ValueError(_describe_first_error(error)) from error


def _describe_first_error(error: ValueError) -> str:
    """Pydantic's first complaint, in one line and without its page of documentation."""
    listed: Callable[[], Iterable[dict[str, Any]]] = getattr(error, "errors", tuple)
    faults = listed()
    for fault in faults:
        where = ".".join(str(part) for part in fault.get("loc", ()))
        return f"{where}: {fault.get('msg')}" if where else str(fault.get("msg"))
    return str(error)
