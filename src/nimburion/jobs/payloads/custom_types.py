"""Types of arguments and results that msgspec does not know: pydantic models and paths.

Pydantic models are recognised by duck typing, so that pydantic is never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

import msgspec

from nimburion.jobs.payloads.json_values import check_json_value

_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (list, list),
    (dict, dict),
)
_MODEL_ATTRIBUTES = ("model_dump", "model_validate_json", "__pydantic_serializer__")


def is_pydantic_model(kind: object) -> bool:
    """Return whether `kind` is a pydantic model class."""
    return isinstance(kind, type) and all(hasattr(kind, name) for name in _MODEL_ATTRIBUTES)


def is_custom_type(kind: object) -> bool:
    """Return whether the hooks of this module convert values of the class `kind`."""
    return is_pydantic_model(kind) or (isinstance(kind, type) and issubclass(kind, PurePath))


def enc_hook(value: Any) -> Any:  # noqa: ANN401 (msgspec's hook)
    """Convert a value that msgspec does not support; the `enc_hook` of msgspec.

    A pydantic model becomes plain JSON values, by alias. A path becomes its text. An instance of a
    subclass of a built-in type (Markup, a NumPy float) becomes an instance of that type. Any other
    value raises `TypeError`.
    """
    if is_pydantic_model(type(value)):
        check_json_value(value.model_dump(warnings=False))
        return value.model_dump(mode="json", by_alias=True, warnings=False)
    if isinstance(value, PurePath):
        return str(value)
    for kind, plainly in _BASES:
        if isinstance(value, kind):
            return plainly(value)
    raise TypeError(f"`{type(value).__qualname__}` cannot be encoded as JSON")


def dec_hook(kind: Any, value: Any) -> Any:  # noqa: ANN401 (msgspec's hook)
    """Convert plain JSON values to a pydantic model or a path; the `dec_hook` of msgspec.

    `ValueError` says what does not fit.
    """
    if kind is object:
        return value
    if issubclass(kind, PurePath):
        if not isinstance(value, str):
            raise ValueError(  # noqa: TRY004 (msgspec expects it from its hooks)
                f"Expected a path as `str`, got `{type(value).__name__}`"
            )
        return kind(value)
    try:
        return kind.model_validate_json(msgspec.json.encode(value))
    except ValueError as error:
        raise ValueError(_describe_first_error(error)) from error


def _describe_first_error(error: ValueError) -> str:
    """Return pydantic's first error in one line, without the link to its documentation."""
    listed: Callable[[], Iterable[dict[str, Any]]] = getattr(error, "errors", tuple)
    details = listed()
    for detail in details:
        where = ".".join(str(part) for part in detail.get("loc", ()))
        return f"{where}: {detail.get('msg')}" if where else str(detail.get("msg"))
    return str(error)
