"""The OpenAPI document of the API, made from its operations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nimburion.core.limits import LIMIT_PATTERN
from nimburion.server.api.body_rules import Schema
from nimburion.server.api.names import NAME_SCHEMA
from nimburion.server.api.operation import AnyOperation, NoBody
from nimburion.server.problems import PROBLEM_TYPE, ProblemDocument

API_PATH = "/api/v1"
_REFERENCE = "#/components/schemas/{name}"
_PROBLEM = {"content": {PROBLEM_TYPE: {"schema": {"$ref": _REFERENCE.format(name="Problem")}}}}


def make_openapi_document(operations: Sequence[AnyOperation], version: str) -> dict[str, Any]:
    """Return the document, as OpenAPI 3.1."""
    kinds = [operation.answer for operation in operations]
    kinds += [operation.body for operation in operations if operation.body is not NoBody]
    schemas, components = msgspec.json.schema_components(
        [*kinds, ProblemDocument], ref_template=_REFERENCE
    )
    components = dict(components)
    components["Problem"] = components.pop("ProblemDocument")
    by_kind = dict(zip(map(id, kinds), schemas, strict=False))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _describe_operation(operation, by_kind, components)
        paths.setdefault(API_PATH + operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "nimburion management API", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _describe_operation(
    operation: AnyOperation, by_kind: dict[int, Any], components: dict[str, Any]
) -> dict[str, Any]:
    answer = {"application/json": {"schema": by_kind[id(operation.answer)]}}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the right `{operation.right}`.",
        "x-nimburion-right": operation.right,
        "parameters": [
            *_describe_path(operation.path),
            *_describe_query(operation.query),
            *(_IDEMPOTENCY_KEY if operation.idempotency_key else ()),
        ],
        "responses": {
            str(operation.status): {"description": "Done.", "content": answer},
            "default": {"description": "An error.", **_PROBLEM},
        },
    }
    if operation.body is not NoBody:
        schema = components[operation.body.__name__]
        rules = []
        if operation.rules:
            properties = _inline(schema["properties"], components)
            rules = [make_rule(properties) for make_rule in operation.rules]
        body = by_kind[id(operation.body)]
        described["requestBody"] = {
            "required": _needs_content(schema, rules),
            "content": {
                "application/json": {"schema": {"allOf": [body, *rules]} if rules else body}
            },
        }
    return described


def _needs_content(schema: Mapping[str, Any], rules: Sequence[Schema]) -> bool:
    """Return whether `{}`, which an empty body stands for, is refused."""
    return bool(schema.get("required")) or any(
        all("required" in option for option in rule["anyOf"]) for rule in rules
    )


def _describe_path(path: str) -> list[dict[str, Any]]:
    patterns = {
        name: LIMIT_PATTERN if name == "limit" else NAME_SCHEMA
        for name in re.findall(r"\{(\w+)\}", path)
    }
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": pattern},
        }
        for name, pattern in patterns.items()
    ]


def _describe_query(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    schema = components[kind.__name__]
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": _inline(_allow_seconds(_without_null(parameter)), components),
        }
        for name, parameter in schema.get("properties", {}).items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that may be left out: a query holds no null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else schema


def _allow_seconds(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter. A time may also be a number of epoch seconds."""
    return {"anyOf": [schema, _SECONDS]} if schema.get("format") == "date-time" else schema


_SECONDS = {"type": "number", "minimum": -62_135_596_800, "exclusiveMaximum": 253_402_300_800}
"""The seconds that a `datetime` can hold: the years 1 to 9999."""


def _inline(schema: Any, components: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """Return a schema with its references replaced by what they name."""
    if isinstance(schema, list):
        return [_inline(item, components) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(components[schema["$ref"].rpartition("/")[2]], components)
    return {name: _inline(value, components) for name, value in schema.items()}


_IDEMPOTENCY_KEY = (
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "A repeat with the same key stores no second job or signal.",
        "schema": {"type": "string", "pattern": r'^"?[!#-~]{1,255}"?$'},
    },
)
