"""The dashboard inside a web application that is not async, such as one of Django or Flask.

The application passes each request on as a `BufferedRequest`, with the caller whom it has signed
in. The pages are made on the event loop of `processor.sync`, in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Scope

from nimburion.core.access_rights import RIGHTS
from nimburion.core.errors import DefinitionError, NimburionError
from nimburion.core.settings import Config
from nimburion.core.text.escaping import escape_controls
from nimburion.core.text.suggestions import describe_unknown
from nimburion.jobs.client.client import Client
from nimburion.jobs.processor import Processor
from nimburion.server.access import (
    CALLER_KEY,
    SECURITY_HEADERS,
    Caller,
    SignedInAccess,
    make_sign_in_problem,
)
from nimburion.server.dashboard.responses import report_on_page
from nimburion.server.dashboard.routes import make_dashboard_routes
from nimburion.server.health import HealthChecks
from nimburion.server.problems import Problem, make_problem
from nimburion.server.routes import answer_http_error
from nimburion.server.services import ManagementServices

_MAX_NAME_CHARACTERS = 200
_CONNECTION_HEADERS = frozenset({b"connection"})
"""Headers that belong to the web server: a WSGI application may not send them (PEP 3333)."""


class BufferedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its whole body, as any web framework can make it."""

    method: str
    prefix: str
    """The path below which the dashboard is mounted, decoded, without a slash at the end."""
    path: str
    """The rest of the path, decoded, with a slash at the start."""
    query: str
    """The query, as it was sent."""
    headers: tuple[tuple[str, str], ...]
    body: bytes
    scheme: str = "http"
    caller: Caller | None
    """Who is signed in; None: nobody."""

    def make_scope(self) -> Scope:
        """Return the request as a scope of ASGI."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.scheme,
            "root_path": self.prefix,
            "path": self.prefix + self.path,
            "raw_path": None,
            "query_string": self.query.encode("latin-1", "replace"),
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
                for name, value in self.headers
            ],
            "client": None,
            "server": None,
            CALLER_KEY: self.caller,
        }


class BufferedResponse(msgspec.Struct, frozen=True):
    """An answer with its whole body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class SyncDashboard:
    """The dashboard of a processor, for code that is not async.

    ```python
    dashboard = SyncDashboard(processor, config.load())
    response = dashboard.answer(request)
    ```
    """

    def __init__(self, processor: Processor, config: Config) -> None:
        self._processor = processor
        self._config = config
        # `processor.sync` opens another client after a fork, and after it was closed.
        self._app: tuple[Client, Starlette] | None = None

    @property
    def max_body(self) -> int:
        """The maximum size of a body in bytes. You need not read more."""
        return self._config.server.max_body

    def answer(self, request: BufferedRequest) -> BufferedResponse:
        """Answer a request, and block until the answer is complete.

        Raises `DefinitionError` if the caller has a right that does not exist, or a name that is no
        text. Control characters in the name are escaped: it is written into logs.
        """
        if request.caller is None:  # answered without opening the backend
            return _report(request, make_sign_in_problem())
        caller = _check_caller(request.caller)
        request = msgspec.structs.replace(request, caller=caller)
        try:
            return self._processor.sync.call(self._respond, request)
        except NimburionError as error:  # the backend could not be opened
            found = make_problem(error) or Problem(503, "backend-unavailable", str(error))
            if "read" not in caller.rights:  # the error may name a host
                found.detail = "the backend does not answer"
            return _report(request, found)

    async def _respond(self, client: Client, request: BufferedRequest) -> BufferedResponse:
        made = self._app
        if made is None or made[0] is not client:
            self._app = made = client, self._make_app(client)
        return await _call_application(made[1], request)

    def _make_app(self, client: Client) -> Starlette:
        health = HealthChecks(client.backend, client.clock, lambda: "started", None)
        services = ManagementServices(self._config, client, health)
        app = Starlette(
            routes=make_dashboard_routes(services, SignedInAccess()),
            exception_handlers={HTTPException: answer_http_error},
        )
        app.router.redirect_slashes = False
        return app


def _check_caller(caller: Caller) -> Caller:
    """Return the caller with a name that can be shown. Raises `DefinitionError`."""
    name: object = caller.name
    if not isinstance(name, str):
        raise DefinitionError(f"the name of a caller must be a text, not {name!r}")
    unknown = describe_unknown("right", sorted(caller.rights), RIGHTS)
    if unknown:
        raise DefinitionError(f"the caller {name!r}: {unknown}")
    return Caller(escape_controls(name)[:_MAX_NAME_CHARACTERS], frozenset(caller.rights))


def _report(request: BufferedRequest, problem: Problem) -> BufferedResponse:
    """Return a problem as a page, where there is no event loop."""
    response = report_on_page(Request(request.make_scope()), problem)
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return _make_response(response.status_code, response.raw_headers, bytes(response.body))


async def _call_application(app: Starlette, request: BufferedRequest) -> BufferedResponse:
    """Return what an ASGI application answers."""
    received: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        return received.pop() if received else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(request.make_scope(), receive, send)
    start, *parts = sent
    return _make_response(
        start["status"], start["headers"], b"".join(part.get("body", b"") for part in parts)
    )


def _make_response(
    status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> BufferedResponse:
    return BufferedResponse(
        status,
        tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
            if name.lower() not in _CONNECTION_HEADERS
        ),
        body,
    )
