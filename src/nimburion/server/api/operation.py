"""Operations of the API: what each takes and returns, and how a request becomes a call.

An `Operation` holds all that is known of a route: method, path, right, types and handler. The
routes and the OpenAPI document are made from it, so they cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nimburion.actions import Actions, Operator
from nimburion.actions.operator import RIGHT_BY_ACTION
from nimburion.core.errors import InvalidJob
from nimburion.core.limits import LIMIT_PATTERN
from nimburion.core.size_limits import check_name
from nimburion.core.text.suggestions import describe_unknown
from nimburion.jobs.client.client import make_actions
from nimburion.scheduler.schedules import Schedules
from nimburion.server.access import Caller, has_json_body
from nimburion.server.api.body_rules import Rule
from nimburion.server.problems import InvalidPart, Problem
from nimburion.server.services import ManagementServices

QueryT = TypeVar("QueryT", bound=msgspec.Struct)
BodyT = TypeVar("BodyT", bound=msgspec.Struct)

Method = Literal["GET", "POST", "DELETE"]


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of an operation without parameters."""


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an operation without arguments: empty, or `{}`."""


class ApiRequest(msgspec.Struct, Generic[QueryT, BodyT], frozen=True):
    """A request to the API, with its parts parsed."""

    services: ManagementServices
    caller: Caller
    path: dict[str, str]
    """The parameters of the path. All are names or ids, and valid ones."""
    query: QueryT
    body: BodyT
    idempotency_key: str | None = None
    origin: str = "api"
    """Through what the request came: `api` or `dashboard`."""

    @property
    def operator(self) -> Operator:
        """The caller, as who acts."""
        return Operator(self.caller.name, self.origin, self.caller.rights)

    @property
    def actions(self) -> Actions:
        """The actions of the caller."""
        return make_actions(self.services.client, self.operator)

    @property
    def schedules(self) -> Schedules:
        """The schedules, for the caller."""
        return self.services.make_schedules(self.operator)


class Operation(msgspec.Struct, Generic[QueryT, BodyT], frozen=True, kw_only=True):
    """One operation of the API."""

    method: Method
    path: str
    """Below `/api/v1`, with parameters in braces: `/queues/{queue}/pause`."""
    handle: Callable[[ApiRequest[QueryT, BodyT]], Awaitable[object]]
    """Returns the answer, as a value of the type `answer`."""
    answer: Any
    query: type[QueryT] = cast("type[QueryT]", NoQuery)
    body: type[BodyT] = cast("type[BodyT]", NoBody)
    rules: tuple[Rule, ...] = ()
    """What the body must be beyond the types of its fields."""
    read_right: str = "read"
    """The right of an operation without an action."""
    action: str | None = None
    """The action that the handler calls, or one of several with the same right. Each operation that
    changes something has one.
    """
    status: int = 200
    idempotency_key: bool = False
    """Whether the header `Idempotency-Key` makes the operation safe to repeat. Where it does not,
    the operation is safe to repeat by itself.
    """

    @property
    def name(self) -> str:
        """The name of the operation, which is that of its handler."""
        return self.handle.__name__

    @property
    def right(self) -> str:
        """The right that a caller needs."""
        return self.read_right if self.action is None else RIGHT_BY_ACTION[self.action]

    @property
    def summary(self) -> str:
        """What the operation does, from the docstring of its handler."""
        return " ".join((self.handle.__doc__ or "").split())


AnyOperation = Operation[Any, Any]


async def run_operation(
    operation: AnyOperation, services: ManagementServices, request: Request, caller: Caller
) -> Response:
    """Answer a request with an operation. Raises `Problem` for a request that does not fit."""
    path = {name: check_path_name(name, text) for name, text in request.path_params.items()}
    parsed = ApiRequest(
        services,
        caller,
        path,
        parse_query(request.query_params.multi_items(), operation.query),
        await read_body(request, operation.body, services.config.server.max_body),
        _parse_idempotency_key(request) if operation.idempotency_key else None,
    )
    content = msgspec.json.encode(await operation.handle(parsed))
    return Response(content, operation.status, media_type="application/json")


def check_path_name(parameter: str, text: str) -> str:
    """Return a name or id of the path if it is valid. Raises `Problem`."""
    if parameter == "limit":
        if re.fullmatch(LIMIT_PATTERN, text):
            return text
        advice = "limit must be the name of a limit: job:NAME, queue:NAME, or that of a shared one"
        raise make_parameter_problem(parameter, advice)
    try:
        return check_name(parameter, text)
    except InvalidJob as error:
        raise make_parameter_problem(parameter, str(error)) from None


def parse_query(pairs: Iterable[tuple[str, str]], kind: type[QueryT]) -> QueryT:
    """Return the parameters of a query. Only those whose default is a tuple may be repeated."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, str | list[str]] = {}
    for name, text in pairs:
        if name not in fields:
            unknown = describe_unknown("parameter", [name], fields) or ""
            raise make_parameter_problem(name, unknown)
        if isinstance(fields[name].default, tuple):
            cast("list[str]", values.setdefault(name, [])).append(text)
        elif name in values:
            raise make_parameter_problem(name, f"the parameter {name!r} is repeated")
        else:
            values[name] = text
    try:
        query = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        detail, place = _split_place(error)
        name = place.partition("/")[0]
        raise make_parameter_problem(name, f"{name}: {detail}") from None
    except ValueError as error:  # seconds beyond the years that a `datetime` can hold
        detail = f"a time cannot be read: {error}"
        raise Problem(422, "invalid-parameter", detail) from None
    for name in values:
        if getattr(query, name) is None:  # the text `null`, which is none of the allowed values
            raise make_parameter_problem(name, f"{name}: leave the parameter out instead")
    return query


def make_parameter_problem(name: str, detail: str) -> Problem:
    """Return the problem for a parameter of the path or of the query."""
    part = InvalidPart(detail, parameter=name[:100])
    return Problem(422, "invalid-parameter", detail, parts=(part,))


async def read_body(request: Request, kind: type[BodyT], max_size: int) -> BodyT:
    """Read, decode and validate the body of a request. An empty body counts as `{}`."""
    content = await read_content(request, max_size)
    if content and not has_json_body(request):
        raise Problem(415, "unsupported-media-type", "send the body as application/json")
    try:
        return _decode_body(content or b"{}", kind)
    except msgspec.ValidationError as error:
        raise make_body_problem(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "malformed-body", f"the body is no JSON: {error}") from None


def _decode_body(content: bytes, kind: type[BodyT]) -> BodyT:
    """Return the body. A field that is a whole number may be written as `5.0`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
            return msgspec.json.decode(_shorten_whole_numbers(fields), type=kind)
        raise error from None


def _shorten_whole_numbers(fields: dict[str, msgspec.Raw]) -> bytes:
    """Return the JSON of the fields, with `5` in place of `5.0`; other texts stay as they are."""
    whole = {
        name: msgspec.Raw(found[1])
        for name, raw in fields.items()
        if (found := _WHOLE_NUMBER.fullmatch(bytes(raw)))
    }
    return msgspec.json.encode(fields | whole)


_WHOLE_NUMBER = re.compile(rb"(-?[0-9]+)\.0+")


def make_body_problem(error: msgspec.ValidationError) -> Problem:
    """Return the problem for a body whose fields do not fit."""
    detail, place = _split_place(error)
    part = InvalidPart(detail, pointer=f"#/{place}" if place else "#")
    where = f"{place}: " if place else ""
    return Problem(422, "invalid-body", f"{where}{detail}", parts=(part,))


async def read_content(request: Request, max_size: int) -> bytes:
    """Return the body of a request. Raises `Problem` if it is too large."""
    content = bytearray()
    declared = request.headers.get("content-length", "0")
    too_large = declared.isascii() and declared.isdigit() and int(declared[:18]) > max_size
    if not too_large:
        async for chunk in request.stream():
            content += chunk
            too_large = len(content) > max_size
            if too_large:
                break
    if too_large:
        detail = f"the body has more than {max_size} bytes (server.max_body)"
        raise Problem(413, "body-too-large", detail, headers={"Connection": "close"})
    return bytes(content)


_PLACE = re.compile(r"(.*) - at `(?:key in )?\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")


def _split_place(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the message of an error, and the place in the value: `rights/0`."""
    found = _PLACE.fullmatch(str(error))
    if found is None:
        return str(error), ""
    steps = [name or index for name, index in _STEP.findall(found[2])]
    return found[1], "/".join(steps)


_KEY = re.compile(r'"?([\x21\x23-\x7e]{1,255})"?')


def _parse_idempotency_key(request: Request) -> str | None:
    value = request.headers.get("idempotency-key")
    if value is None:
        return None
    found = _KEY.fullmatch(value)
    if found is None:
        detail = "Idempotency-Key must be 1 to 255 visible characters"
        part = InvalidPart(detail, header="Idempotency-Key")
        raise Problem(400, "invalid-header", detail, parts=(part,))
    return found[1]
