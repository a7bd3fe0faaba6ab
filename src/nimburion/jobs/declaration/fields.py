"""What the fields of a job are, and whether their types can travel as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, inspect

from nimburion.core.errors import DefinitionError
from nimburion.jobs.declaration.pydantic_models import is_guest

_ODD = (inspect.IntType, inspect.FloatType, inspect.AnyType, inspect.DateTimeType)
_DEEP = (
    inspect.AnyType,
    inspect.StructType,
    inspect.DataclassType,
    inspect.TypedDictType,
    inspect.NamedTupleType,
)
_PLAIN = (
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
_CANNOT = (inspect.CustomType, inspect.RawType, inspect.ExtType)
_ADVICE = (
    "use a str, number, bool, bytes, datetime, UUID, Decimal, enum, list, dict, dataclass, "
    "msgspec Struct, TypedDict or pydantic model instead"
)


class Field(NamedTuple):
    """One argument of a job."""

    name: str
    type: object
    default: Any = NODEFAULT
    default_factory: Any = NODEFAULT
    keyword_only: bool = True


class Traits(NamedTuple):
    """What the types of some fields may hold, so that only needed checks are made."""

    odd: bool
    """Numbers, datetimes or anything: values that need a look before they become JSON."""
    times: bool
    """Datetimes: text that needs a look after it was JSON."""
    deep: bool
    """Classes within, or anything: what may nest without an end."""
    plain: bool
    """Only text, numbers, enums and collections of them: values that are JSON as they are."""


def traits_of(name: str, fields: Sequence[Field]) -> Traits:
    """Look through all types; `DefinitionError` names the first that JSON cannot carry."""
    nodes = [node for field in fields for node in _checked(name, field)]
    return Traits(
        odd=_any(nodes, *_ODD, inspect.CustomType),
        times=_any(nodes, inspect.DateTimeType),
        deep=_any(nodes, *_DEEP, inspect.CustomType),
        plain=all(isinstance(node, _PLAIN) for node in nodes),
    )


def _any(nodes: Sequence[inspect.Type], *kinds: type[inspect.Type]) -> bool:
    return any(isinstance(node, kinds) for node in nodes)


def struct_of(name: str, fields: Sequence[Field], base: type[msgspec.Struct]) -> Any:  # noqa: ANN401
    """A Struct class with these fields that refuses all others. What may be given by position
    keeps its place; the rest is keyword-only."""
    positional = [_described(field) for field in fields if not field.keyword_only]
    keywords = [_described(field) for field in fields if field.keyword_only]
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
    """`DefinitionError` when values of this type cannot travel as JSON."""
    for _ in _nodes_of(what, kind):
        pass


def _described(field: Field) -> tuple[str, Any, Any]:
    if field.default_factory is not NODEFAULT:
        return field.name, field.type, msgspec.field(default_factory=field.default_factory)
    if field.default is NODEFAULT:
        return field.name, field.type, msgspec.field()
    if isinstance(field.default, list | dict | set | bytearray):
        return field.name, field.type, msgspec.field(default_factory=field.default.copy)
    return field.name, field.type, msgspec.field(default=field.default)


def _checked(name: str, field: Field) -> Iterator[inspect.Type]:
    return _nodes_of(f"job {name!r}, field {field.name!r}", field.type)


def _nodes_of(what: str, kind: object) -> Iterator[inspect.Type]:
    try:
        root = inspect.type_info(kind)
    except Exception as error:
        raise DefinitionError(f"{what}: {_plainly(error)}; {_ADVICE}") from error
    for node in _walk(root, set()):
        if isinstance(node, _CANNOT) and not _is_welcome(node):
            shown = getattr(getattr(node, "cls", type(node)), "__qualname__", repr(kind))
            raise DefinitionError(f"{what}: {shown} cannot travel as JSON; {_ADVICE}")
        yield node


def _is_welcome(node: inspect.Type) -> bool:
    return isinstance(node, inspect.CustomType) and (node.cls is object or is_guest(node.cls))


def _walk(node: object, seen: set[int]) -> Iterator[inspect.Type]:
    """Every type below `node`, each once; types that hold themselves end."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, inspect.Type):
        yield node
    if isinstance(node, inspect.Type | inspect.Field):
        for attribute in node.__struct_fields__:
            yield from _walk(getattr(node, attribute), seen)
    elif isinstance(node, tuple):
        for member in node:
            yield from _walk(member, seen)


def _plainly(error: Exception) -> str:
    """Msgspec's sentence without the repetition at its end."""
    return str(error).partition(" - type ")[0]
