"""The fields of a job, and the check that their types have a JSON form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, inspect

from nimburion.core.errors import DefinitionError
from nimburion.jobs.payloads.json_values import is_custom_type

_CHECKED_TYPES = (inspect.IntType, inspect.FloatType, inspect.AnyType, inspect.DateTimeType)
_NESTING_TYPES = (
    inspect.AnyType,
    inspect.StructType,
    inspect.DataclassType,
    inspect.TypedDictType,
    inspect.NamedTupleType,
)
_JSON_TYPES = (
    inspect.StrType,
    inspect.IntType,
    inspect.FloatType,
    inspect.BoolType,
    inspect.NoneType,
    inspect.EnumType,
    inspect.LiteralType,
    inspect.ListType,
    inspect.DictType,
    inspect.UnionType,
)
_UNSUPPORTED_TYPES = (inspect.CustomType, inspect.RawType, inspect.ExtType)
_ADVICE = (
    "use a str, number, bool, bytes, datetime, UUID, Decimal, Path, enum, list, dict, "
    "dataclass, msgspec Struct, TypedDict or pydantic model instead"
)


class JobField(NamedTuple):
    """One argument of a job."""

    name: str
    type: object
    default: Any = NODEFAULT
    default_factory: Any = NODEFAULT
    keyword_only: bool = True


class FieldTraits(NamedTuple):
    """What values the types of the fields allow, so that only the necessary checks run."""

    needs_json_check: bool
    """Numbers, datetimes or `Any` occur: values are checked before they are encoded as JSON."""
    times: bool
    """Datetimes occur: values are checked after they are decoded from JSON."""
    deep: bool
    """Classes or `Any` occur: values may nest without a limit."""
    plain: bool
    """Only text, numbers, enums and collections of them occur: values are JSON without
    conversion."""


def inspect_fields(name: str, fields: Sequence[JobField]) -> FieldTraits:
    """Return the traits of all field types; `DefinitionError` names the first without a JSON
    form."""
    nodes = [node for field in fields for node in _iterate_field_types(name, field)]
    return FieldTraits(
        needs_json_check=_has_type(nodes, *_CHECKED_TYPES, inspect.CustomType),
        times=_has_type(nodes, inspect.DateTimeType),
        deep=_has_type(nodes, *_NESTING_TYPES, inspect.CustomType),
        plain=all(isinstance(node, _JSON_TYPES) for node in nodes),
    )


def _has_type(nodes: Sequence[inspect.Type], *kinds: type[inspect.Type]) -> bool:
    return any(isinstance(node, kinds) for node in nodes)


def make_struct(name: str, fields: Sequence[JobField], base: type[msgspec.Struct]) -> Any:  # noqa: ANN401
    """Return a Struct class with these fields that rejects all other fields.

    Positional fields keep their order; the others are keyword-only.
    """
    positional = [_make_member(field) for field in fields if not field.keyword_only]
    keywords = [_make_member(field) for field in fields if field.keyword_only]
    front = msgspec.defstruct(
        name, positional, bases=(base,), forbid_unknown_fields=True, module=__name__
    )
    if not keywords:
        return front
    return msgspec.defstruct(
        name,
        keywords,
        bases=(front,),
        forbid_unknown_fields=True,
        kw_only=True,
        module=__name__,
    )


def check_type(what: str, kind: object) -> None:
    """Raise `DefinitionError` when values of this type have no JSON form."""
    for _ in _iterate_types(what, kind):
        pass


def _make_member(field: JobField) -> tuple[str, Any, Any]:
    if field.default_factory is not NODEFAULT:
        return field.name, field.type, msgspec.field(default_factory=field.default_factory)
    if field.default is NODEFAULT:
        return field.name, field.type, msgspec.field()
    if isinstance(field.default, list | dict | set | bytearray):
        return field.name, field.type, msgspec.field(default_factory=field.default.copy)
    return field.name, field.type, msgspec.field(default=field.default)


def _iterate_field_types(name: str, field: JobField) -> Iterator[inspect.Type]:
    return _iterate_types(f"job {name!r}, field {field.name!r}", field.type)


def _iterate_types(what: str, kind: object) -> Iterator[inspect.Type]:
    try:
        root = inspect.type_info(kind)
    except Exception as error:
        raise DefinitionError(f"{what}: {_shorten_error(error)}; {_ADVICE}") from error
    for node in _visit_types(root, set()):
        if isinstance(node, _UNSUPPORTED_TYPES) and not _is_supported(node):
            shown = getattr(getattr(node, "cls", type(node)), "__qualname__", repr(kind))
            raise DefinitionError(f"{what}: {shown} cannot be encoded as JSON; {_ADVICE}")
        yield node


def _is_supported(node: inspect.Type) -> bool:
    return isinstance(node, inspect.CustomType) and (node.cls is object or is_custom_type(node.cls))


def _visit_types(node: object, seen: set[int]) -> Iterator[inspect.Type]:
    """Yield every type within `node` once; recursive types end."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, inspect.Type):
        yield node
    if isinstance(node, inspect.Type | inspect.Field):
        for attribute in node.__struct_fields__:
            yield from _visit_types(getattr(node, attribute), seen)
    elif isinstance(node, tuple):
        for member in node:
            yield from _visit_types(member, seen)


def _shorten_error(error: Exception) -> str:
    """Return msgspec's message without the repetition at its end."""
    return str(error).partition(" - type ")[0]
