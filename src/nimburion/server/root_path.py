"""Requests through a proxy that shows the server below a path."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """An application below a path of a proxy.

    Links begin with the path. Requests may have it or not: a proxy may strip it, and probes of an
    orchestrator do not know it.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._path and scope["type"] == "http":
            path: str = scope["path"]
            rest = path.removeprefix(self._path)
            if not rest.startswith("/"):  # `/jobs` itself, or another name such as `/jobs2`
                rest = path if rest else "/"
            # In ASGI, the path of a request contains the path of the root.
            scope = {**scope, "root_path": self._path, "path": self._path + rest}
        await self._app(scope, receive, send)
