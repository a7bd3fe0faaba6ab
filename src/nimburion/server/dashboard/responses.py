"""Answers of the dashboard: pages as HTML, JSON, CSV and fragments; actions; problems."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from nimburion.core.text.escaping import escape_controls
from nimburion.server.access import Caller
from nimburion.server.api.operation import (
    ApiRequest,
    check_path_name,
    make_body_problem,
    make_parameter_problem,
    parse_query,
    read_content,
)
from nimburion.server.dashboard.assets import load_assets
from nimburion.server.dashboard.csv_tables import make_csv
from nimburion.server.dashboard.fragments import Fragment
from nimburion.server.dashboard.page import (
    UPDATE_INTERVAL,
    AnyPage,
    DashboardAction,
    PageRequest,
)
from nimburion.server.dashboard.readings import (
    FOR_DATA,
    FOR_UPDATES,
    NotReadYet,
    PageReadings,
    ReadPolicy,
)
from nimburion.server.dashboard.rendering import render_block, render_page
from nimburion.server.dashboard.site import ACTIONS, SECTIONS
from nimburion.server.problems import Problem, make_problem
from nimburion.server.services import ManagementServices

DASHBOARD_PATH = "/dashboard"
Form = Literal["html", "json", "csv", "fragment"]

_FORM_TYPE = "application/x-www-form-urlencoded"
_ACTIONS = {action.name: action for action in ACTIONS}
_MAX_NOTICE_CHARACTERS = 300


async def answer_page(
    page: AnyPage, services: ManagementServices, request: Request, caller: Caller
) -> Response:
    """Answer a request for a page, in the form that it asks for."""
    form, notice, pairs = _split_query(request)
    path = {name: check_path_name(name, text) for name, text in request.path_params.items()}
    query = parse_query(pairs, page.query)
    visit = PageVisit(page, services, request, caller=caller, path=path, query=query)
    if form == "json":
        return await visit.answer_json()
    if form == "csv":
        return await visit.answer_csv(request.query_params.get("table"))
    if form == "fragment":
        return await visit.answer_fragment(request.headers.get("if-none-match"))
    return await visit.answer_html(notice)


class PageVisit:
    """One request for a page."""

    def __init__(
        self,
        page: AnyPage,
        services: ManagementServices,
        request: Request,
        *,
        caller: Caller,
        path: dict[str, str],
        query: msgspec.Struct,
    ) -> None:
        self._page = page
        self._services = services
        self._caller = caller
        self._path = path
        self._query = query
        self._interval = page.interval or UPDATE_INTERVAL
        self._base = find_base(request)
        self._own_query = urlencode(
            [pair for pair in request.query_params.multi_items() if pair[0] not in _OWN_PARAMETERS]
        )

    async def answer_json(self) -> Response:
        """Return what the page shows as JSON."""
        readings = self._make_readings()
        shown = await self._read(readings)
        headers = _describe_age(readings)
        return Response(msgspec.json.encode(shown), 200, headers, "application/json")

    async def answer_csv(self, table: str | None) -> Response:
        """Return a table of the page as CSV; without a name, the first one."""
        tables = self._page.tables
        if not tables:
            raise make_parameter_problem("format", "this page has no table; format=json works")
        if table is not None and table not in tables:
            raise make_parameter_problem("table", f"table: one of {', '.join(tables)}")
        readings = self._make_readings()
        shown = await self._read(readings)
        chosen = table or tables[0]
        name = self._page.name if chosen == tables[0] else f"{self._page.name}-{chosen}"
        headers = {
            **_describe_age(readings),
            "Content-Disposition": f'attachment; filename="{name}.csv"',
        }
        return Response(make_csv(self._page.list_rows(shown, chosen)), 200, headers, "text/csv")

    async def answer_fragment(self, known: str | None) -> Response:
        """Return the live part of the page, and when to ask for it again. A client that has it is
        told so: `known` is its entity tag.
        """
        fragments = self._services.fragments
        key = (self._page.name, *self._path.values(), self._own_query, self._base, self._caller)
        fragment = await fragments.get(key, self._render_fragment)
        wait = fragments.compute_wait(fragment, self._interval)
        etag = fragment.compute_etag()
        headers = {
            "As-Of": f"{fragment.at:.3f}",
            "Problem": quote(fragment.problem),
            "Poll-After": f"{wait:.3f}",
            "ETag": etag,
        }
        if known == etag:
            return Response(None, HTTPStatus.NOT_MODIFIED, headers)
        return Response(fragment.html, 200, headers, "text/html")

    async def answer_html(
        self,
        notice: str,
        kind: str = "done",
        status: int = 200,
        refill: Callable[[Any], Any] | None = None,
    ) -> Response:
        """Return the whole page. `refill` changes what it shows.

        If the values are not read in time, the page comes without them, and its script asks for
        them.
        """
        must_read = refill is not None or (self._page.redirect and self._page.interval is None)
        policy = FOR_DATA if must_read else self._services.page_policy
        readings = self._make_readings(policy)
        shown: msgspec.Struct | None
        try:
            shown = await self._read(readings)
        except NotReadYet:
            shown = None
        if refill is not None:
            shown = refill(shown)
        target = self._page.redirect(shown) if self._page.redirect and shown else None
        if target is not None:
            return RedirectResponse(f"{self._base}{target}", HTTPStatus.SEE_OTHER)
        nonce = make_nonce()
        values = {
            **self._make_values(shown, readings),
            "pending": shown is None,
            "nonce": nonce,
            "notice": notice,
            "notice_kind": kind,
            "section": self._page.section,
            "sections": SECTIONS,
            "poll_seconds": self._page.interval,
            "data_url": self._make_data_url(),
            "tables": self._page.tables,
            "caller": self._caller,
            "backend": self._services.backend.describe(),
        }
        return make_html(render_page(self._page.template, values), nonce, status)

    async def _render_fragment(self) -> Fragment:
        readings = self._make_readings(FOR_UPDATES)
        values = self._make_values(await self._read(readings), readings)
        html = render_block(self._page.template, "live", values)
        # Values from the background have no due time, and a page may read none.
        due_at = min(readings.due_at, self._services.readings.clock.monotonic() + self._interval)
        return Fragment(html=html, at=readings.at, problem=readings.problem, due_at=due_at)

    def _make_readings(self, policy: ReadPolicy = FOR_DATA) -> PageReadings:
        return PageReadings(self._services.readings, policy)

    async def _read(self, readings: PageReadings) -> msgspec.Struct:
        request = PageRequest(self._services, self._caller, self._path, self._query, readings)
        return await self._page.read(request)

    def _make_values(self, shown: msgspec.Struct | None, readings: PageReadings) -> dict[str, Any]:
        return {
            **make_common_values(self._base),
            **self._page.constants,
            "title": self._page.title.format_map(self._path),
            "page": shown,
            "path": self._path,
            "query": self._query,
            "own_query": self._own_query,
            "at": readings.at,
            "problem": readings.problem,
            "precision": readings.precision,
            "rights": self._caller.rights,
            "actions": _list_actions(self._caller.rights),
        }

    def _make_data_url(self) -> str:
        path = self._page.path.format_map(self._path)
        own = f"{self._own_query}&" if self._own_query else ""
        return f"{self._base}{path}?{own}format="


@lru_cache(maxsize=64)
def _list_actions(rights: frozenset[str]) -> dict[str, DashboardAction]:
    """Return the actions that a caller with these rights may perform, by their names."""
    return {name: action for name, action in _ACTIONS.items() if action.operation.right in rights}


async def perform_action(
    action: DashboardAction, services: ManagementServices, request: Request, caller: Caller
) -> Response:
    """Perform the action of a form. Answer the script with a fragment, and others by a redirect."""
    path = {name: check_path_name(name, text) for name, text in request.path_params.items()}
    pairs = await _read_form(request, services.config.server.max_body)
    has_script = "hx-request" in request.headers
    page = action.form_page
    again = None
    if page is not None and not has_script and page.right in caller.rights:
        again = PageVisit(
            page, services, request, caller=caller, path=path, query=page.query()
        ).answer_html
    refill = partial(_refill, action, dict(pairs))
    try:
        answer, changed = await _run_action(action, services, caller, path, pairs)
    except Exception as error:
        problem = make_problem(error)
        if problem is None or again is None:
            raise
        return await again(problem.detail, "failed", problem.status, refill)
    text = action.describe(answer) if action.describe else action.done.format_map(path)
    if has_script:
        return _make_notice(text, "done")
    if again is not None and not changed:
        return await again(text, refill=refill)
    target = f"{find_base(request)}{action.back.format_map(path)}?notice={action.name}"
    return RedirectResponse(target, HTTPStatus.SEE_OTHER)


def _refill(action: DashboardAction, written: dict[str, str], shown: Any) -> Any:  # noqa: ANN401
    return shown if action.refill is None else action.refill(shown, written)


async def _run_action(
    action: DashboardAction,
    services: ManagementServices,
    caller: Caller,
    path: dict[str, str],
    pairs: list[tuple[str, str]],
) -> tuple[object, bool]:
    """Run the operation of a form. Return its answer, and whether it may have changed something."""
    operation = action.operation
    fixed = [(field, path[parameter]) for field, parameter in action.body_from_path.items()]
    body = parse_form([*pairs, *action.fixed.items(), *fixed], operation.body)
    query = parse_query((), operation.query)
    own = {name: path[name] for name in path if f"{{{name}}}" in operation.path}
    answer = await operation.handle(
        ApiRequest(services, caller, own, query, body, origin="dashboard")
    )
    services.readings.expire()
    return answer, not getattr(body, "dry_run", False)


def report_on_page(request: Request, problem: Problem) -> Response:
    """Return a problem as a page, as a notice for the script, or as a problem document."""
    if problem.status == HTTPStatus.UNAUTHORIZED:
        problem.headers["WWW-Authenticate"] = 'Basic realm="nimburion", charset="UTF-8"'
    if wants_json(request):
        return problem.make_response()
    if "hx-request" in request.headers:
        return _make_notice(problem.detail, "failed", problem)
    nonce = make_nonce()
    values = {
        **make_common_values(find_base(request)),
        "nonce": nonce,
        "title": problem.code.replace("-", " ").capitalize(),
        "problem": problem,
        "retries": request.method == "GET" and problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR,
    }
    return make_html(render_page("problem.html", values), nonce, problem.status, problem.headers)


def make_html(
    text: str, nonce: str, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a page with its content security policy."""
    return Response(
        text,
        status,
        {**(headers or {}), "Content-Security-Policy": make_policy(nonce)},
        "text/html",
    )


def make_policy(nonce: str) -> str:
    """Return the content security policy of a page: scripts only with its nonce, styles only from
    files of this server, no frames, no forms to elsewhere.
    """
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def make_nonce(make_token: Callable[[int], str] = secrets.token_urlsafe) -> str:
    """Return a random text for one answer."""
    return make_token(16)


def make_common_values(base: str) -> dict[str, Any]:
    """Return what every template needs."""
    assets = load_assets()
    return {
        "base": base,
        "static": lambda name: f"{base}/static/{name}?v={assets[name].version}",
    }


def find_base(request: Request) -> str:
    """Return the path of the dashboard, with the prefix below which the server is mounted."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    return f"{quote(root)}{DASHBOARD_PATH}"


def choose_form(request: Request) -> Form:
    """Return the form that a request asks for: the parameter `format`, else the header `Accept`."""
    wanted = request.query_params.get("format")
    if wanted is None:
        return "json" if _prefers_json(request.headers) else "html"
    for form in get_args(Form):
        if wanted == form:
            return cast("Form", form)
    raise make_parameter_problem("format", f"format: one of {', '.join(get_args(Form))}")


def wants_json(request: Request) -> bool:
    """Return whether problems are to be reported as documents, not as pages."""
    wanted = request.query_params.get("format")
    return wanted == "json" or (wanted is None and _prefers_json(request.headers))


def _prefers_json(headers: Headers) -> bool:
    kinds = [part.partition(";")[0].strip() for part in headers.get("accept", "").split(",")]
    return "application/json" in kinds and "text/html" not in kinds


_OWN_PARAMETERS = frozenset({"format", "notice", "table"})


def _split_query(request: Request) -> tuple[Form, str, list[tuple[str, str]]]:
    """Return the form, the text of the notice, and the parameters of the page itself.

    A link of another site shows no notice: it would say that something was done.
    """
    pairs = request.query_params.multi_items()
    is_own = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    action = _ACTIONS.get(request.query_params.get("notice", "")) if is_own else None
    notice = "" if action is None else re.sub(r"\{\w+\}", "", action.done).replace("  ", " ")
    own = [pair for pair in pairs if pair[0] not in _OWN_PARAMETERS]
    return choose_form(request), notice, own


def _describe_age(readings: PageReadings) -> dict[str, str]:
    return {"As-Of": f"{readings.at:.3f}", "Problem": quote(readings.problem)}


def _make_notice(text: str, kind: str, problem: Problem | None = None) -> Response:
    shown = escape_controls(text)[:_MAX_NOTICE_CHARACTERS]
    html = render_page("notice.html", {"text": shown, "kind": kind})
    if problem is None:
        return Response(html, media_type="text/html")
    return Response(html, problem.status, problem.headers, "text/html")


async def _read_form(request: Request, max_size: int) -> list[tuple[str, str]]:
    """Return the fields of a form that are filled in."""
    content = await read_content(request, max_size)
    kind = request.headers.get("content-type", _FORM_TYPE).partition(";")[0].strip().lower()
    if kind != _FORM_TYPE:
        raise Problem(415, "unsupported-media-type", f"send the form as {_FORM_TYPE}")
    try:
        return parse_qsl(content.decode(), strict_parsing=bool(content), max_num_fields=2000)
    except ValueError:
        raise Problem(400, "malformed-body", "the body is no form") from None


def parse_form(pairs: list[tuple[str, str]], kind: type[msgspec.Struct]) -> msgspec.Struct:
    """Return the body of an operation from the fields of a form.

    Numbers and flags are given as text. A field for a JSON object holds its text. Raises `Problem`
    for a field that is unknown, repeated or wrong.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for name, text in pairs:
        field = fields.get(name)
        if field is None:
            raise Problem(422, "invalid-body", f"{name[:100]!r} is no field of this form")
        if isinstance(field.default, tuple):
            values.setdefault(name, []).append(text)
        elif name in values:
            raise Problem(422, "invalid-body", f"the field {name!r} is repeated")
        else:
            values[name] = _check_json(text) if _holds_json(field) else text
    try:
        return msgspec.json.decode(msgspec.json.encode(values), type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise make_body_problem(error) from None


def _check_json(text: str) -> msgspec.Raw:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem(400, "malformed-body", f"a field is no JSON: {error}") from None
    return msgspec.Raw(text.encode())


def _holds_json(field: msgspec.structs.FieldInfo) -> bool:
    return "msgspec.Raw" in repr(field.type) or "dict[" in repr(field.type)


async def answer_asset(request: Request, _: Caller) -> Response:
    """Return a static file. Its URL changes with its content, so it may be kept for a year."""
    asset = load_assets().get(request.path_params["file"])
    if asset is None:
        raise Problem(404, "not-found", "there is no such file")
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(asset.content, 200, headers, asset.content_type)


async def redirect_to_dashboard(request: Request, _: Caller) -> Response:
    """Send a browser from `/` to the dashboard."""
    return RedirectResponse(find_base(request), HTTPStatus.TEMPORARY_REDIRECT)
