"""Limits of the management server: requests at once, and the time until a request has arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nimburion.server.problems import Problem

MAX_REQUESTS = 200
"""Requests that are answered at once; further ones get status 503."""
ARRIVAL_TIMEOUT = 10.0
"""Seconds that a connection has to send the head of its first request, and of each further one."""


class RequestLimit:
    """An application that answers a limited number of requests at once.

    Requests for `exempt` paths are always answered: probes and scrapes must not fail because others
    use the server.
    """

    def __init__(self, app: ASGIApp, exempt: Collection[str], limit: int = MAX_REQUESTS) -> None:
        self._app = app
        self._exempt = frozenset(exempt)
        self._limit = limit
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
        if path in self._exempt:
            await self._app(scope, receive, send)
        elif self._count >= self._limit:
            text = f"the server answers {self._limit} requests already; try again"
            problem = Problem(503, "busy", text, headers={"Retry-After": "1"})
            await problem.make_response()(scope, receive, send)
        else:
            self._count += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._count -= 1


class TimedConnection(H11Protocol):
    """A connection that is closed if no request arrives in time."""

    _arrival_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self._arrival_timer = self.loop.call_later(
                ARRIVAL_TIMEOUT, self._close_if_late, self.cycle
            )

    def _stop_timer(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()

    def _close_if_late(self, previous: Any) -> None:  # noqa: ANN401 (uvicorn's request)
        """Close the connection unless another request than `previous` has arrived."""
        if self.cycle is previous:
            self.transport.close()
