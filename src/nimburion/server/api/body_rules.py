"""Rules about several fields of a body, as JSON schemas: the OpenAPI document has them too.

An `Operation` names the rules of its body. What it calls enforces them. A field is set if it is
present, not null, and no empty array. `unique.for` is the field `for` of the object `unique`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Properties = Mapping[str, Any]
"""The schema of each field."""
Schema = dict[str, Any]
Rule = Callable[[Properties], Schema]
"""Makes the alternatives of which a body must match one."""

_NULL: Schema = {"type": "null"}


def require_one(*fields: str) -> Rule:
    """At least one of the fields is set."""
    return lambda properties: {"anyOf": [_set(properties, field) for field in fields]}


def exclude(field: str, *others: str) -> Rule:
    """None of the others is set together with the field."""
    return lambda properties: {"anyOf": [_unset(properties, field), _unset(properties, *others)]}


def need(field: str, other: str) -> Rule:
    """The field is set only together with the other one."""
    return lambda properties: {"anyOf": [_unset(properties, field), _set(properties, other)]}


def select_jobs(*filters: str) -> Rule:
    """Either `ids` are set, or filters, or `all` is true."""

    def make(properties: Properties) -> Schema:
        everything = {"properties": {"all": {"const": True}}, "required": ["all"]}
        no_filter = _merge(_unset(properties, *filters), {"properties": {"all": {"const": False}}})
        no_ids = _unset(properties, "ids")
        by_filter = [_set(properties, field) for field in filters]
        return {
            "anyOf": [
                _merge(_set(properties, "ids"), no_filter),
                *(_merge(option, no_ids) for option in (*by_filter, everything)),
            ]
        }

    return make


def include_state(*states: str) -> Rule:
    """The array `state` is empty, or has one of these states."""
    contains = {"properties": {"state": {"contains": {"enum": list(states)}}}}
    return lambda properties: {"anyOf": [_unset(properties, "state"), contains]}


def _set(properties: Properties, field: str) -> Schema:
    outer, _, inner = field.partition(".")
    schema = properties[outer]
    if inner:
        schema = {"type": "object", **_set(_get_members(schema), inner)}
        return {"properties": {outer: schema}, "required": [outer]}
    if schema.get("type") == "array":
        schema = {"minItems": 1}
    else:
        kinds = [kind for kind in schema.get("anyOf", (schema,)) if kind != _NULL]
        schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {"properties": {field: schema}, "required": [field]}


def _unset(properties: Properties, *fields: str) -> Schema:
    unset: Schema = {}
    for field in fields:
        outer, _, inner = field.partition(".")
        if inner:
            members = unset.setdefault(outer, {"properties": {}})["properties"]
            members.update(_unset(_get_members(properties[outer]), inner)["properties"])
        else:
            unset[outer] = {"maxItems": 0} if properties[outer].get("type") == "array" else _NULL
    return {"properties": unset}


def _get_members(schema: Schema) -> Properties:
    """Return the properties of an object that may be null."""
    found: Properties = next(kind["properties"] for kind in schema["anyOf"] if kind != _NULL)
    return found


def _merge(one: Schema, other: Schema) -> Schema:
    return {**one, "properties": {**one["properties"], **other["properties"]}}
