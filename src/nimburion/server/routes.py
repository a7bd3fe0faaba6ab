"""The routes of the management server, as one ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache, partial
from http import HTTPStatus

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from nimburion.config.local_checks import find_version
from nimburion.server.access import SECURITY_HEADERS, AccessControl, Caller, ProtectedEndpoint
from nimburion.server.api import (
    audit,
    bulk_operations,
    dead_letters,
    flows,
    jobs,
    limits,
    queues,
    runs,
    scale,
    schedules,
    statistics,
    status,
    tenants,
    workers,
)
from nimburion.server.api.operation import AnyOperation, run_operation
from nimburion.server.dashboard.responses import DASHBOARD_PATH, report_on_page, wants_json
from nimburion.server.dashboard.routes import make_dashboard_routes
from nimburion.server.health import HealthChecks, HealthReport
from nimburion.server.openapi import API_PATH, make_openapi_document
from nimburion.server.problems import make_http_problem
from nimburion.server.services import ManagementServices

OPERATIONS: tuple[AnyOperation, ...] = (
    *status.OPERATIONS,
    *queues.OPERATIONS,
    *jobs.OPERATIONS,
    *runs.OPERATIONS,
    *dead_letters.OPERATIONS,
    *flows.OPERATIONS,
    *workers.OPERATIONS,
    *limits.OPERATIONS,
    *tenants.OPERATIONS,
    *statistics.OPERATIONS,
    *scale.OPERATIONS,
    *schedules.OPERATIONS,
    *bulk_operations.OPERATIONS,
    *audit.OPERATIONS,
)
"""All operations of the API."""
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/health/startup"})
"""The routes that need neither token nor right. Every other route is a `ProtectedEndpoint`."""
UNLIMITED_PATHS = OPEN_PATHS | {"/metrics"}
"""What probes and scrapers read, which must be answered however many requests are in progress."""


class ExtraRoute(msgspec.Struct, frozen=True):
    """A route that another package adds to the server."""

    path: str
    right: str
    respond: Callable[[Request], Awaitable[Response]]
    methods: tuple[str, ...] = ("GET",)


def make_management_app(
    services: ManagementServices, access: AccessControl, extra: Sequence[ExtraRoute] = ()
) -> Starlette:
    """Return the application with all routes."""
    routes = [
        *_make_health_routes(services.health),
        Route(
            "/metrics",
            ProtectedEndpoint(access, "read", services.metrics.respond),
            methods=["GET"],
            name="metrics",
        ),
        *(
            Route(
                API_PATH + operation.path,
                ProtectedEndpoint(
                    access, operation.right, partial(run_operation, operation, services)
                ),
                methods=[operation.method],
                name=operation.name,
            )
            for operation in OPERATIONS
        ),
        Route(
            f"{API_PATH}/openapi.json",
            ProtectedEndpoint(access, "read", _answer_openapi),
            methods=["GET"],
            name="openapi",
        ),
        *make_dashboard_routes(services, access),
        *(
            Route(
                route.path,
                ProtectedEndpoint(access, route.right, _ignore_caller(route.respond)),
                methods=list(route.methods),
                name=route.path,
            )
            for route in extra
        ),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: answer_http_error})
    app.router.redirect_slashes = False
    return app


def _ignore_caller(
    respond: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request, Caller], Awaitable[Response]]:
    return lambda request, _: respond(request)


async def _answer_openapi(_: Request, __: Caller) -> Response:
    return Response(encode_openapi_document(), media_type="application/json")


@cache
def encode_openapi_document() -> bytes:
    """Return the OpenAPI document of all operations as JSON."""
    return msgspec.json.encode(make_openapi_document(OPERATIONS, find_version("nimburion")))


def _make_health_routes(health: HealthChecks) -> list[Route]:
    async def live(_: Request) -> Response:
        return _answer_health(health.check_alive())

    async def ready(_: Request) -> Response:
        return _answer_health(await health.check_ready())

    async def startup(_: Request) -> Response:
        return _answer_health(health.check_started())

    return [Route(f"/health/{check.__name__}", check) for check in (live, ready, startup)]


def _answer_health(report: HealthReport) -> Response:
    content = msgspec.json.encode(report)
    headers = {"Cache-Control": "no-store"}
    return Response(content, 200 if report.ok else 503, headers, "application/json")


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer a request that no route takes."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_list_methods(request))
    problem = make_http_problem(error.status_code, headers)
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    is_page = path.startswith(DASHBOARD_PATH) and not wants_json(request)
    response = report_on_page(request, problem) if is_page else problem.make_response()
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _list_methods(request: Request) -> list[str]:
    """Return the methods of the routes that name the path with the fewest parameters.

    Starlette names those of one route only. `/queues/pause` matches `/queues/{queue}` too, but that
    is another resource.
    """
    routes = [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    fewest = min(len(route.param_convertors) for route in routes)
    return sorted(
        method
        for route in routes
        if len(route.param_convertors) == fewest
        for method in route.methods or ()
    )
