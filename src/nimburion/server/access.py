"""Access control: which callers may send which requests.

Each route is a `ProtectedEndpoint`, which checks a request in this order:

1. Host: without tokens, or with `allowed_hosts`, the header `Host` must name this server. A page of
   another site whose name resolves to 127.0.0.1 is thus refused (DNS rebinding).
2. Origin: a request that changes something must not come from a page of another site.
3. Token: with tokens, the header `Authorization` must hold one of them, as `Bearer TOKEN` or as the
   password of `Basic`, which is how a browser signs in. The user name of `Basic` is not read.
4. Right: the caller must have the right of the route. Without tokens, every caller has all rights.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nimburion.config.access_tokens import read_token
from nimburion.core.access_rights import RIGHTS, is_loopback, require_right
from nimburion.core.settings import ServerSettings, TokenSettings
from nimburion.server.problems import Problem, make_problem

_log = logging.getLogger("nimburion.server")

ANSWER_TIMEOUT = 30.0
"""Seconds in which a request must be read and answered."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Set on each answer of a protected route that does not set them itself."""


CALLER_KEY = "nimburion.caller"
"""The key in the scope of a request for the caller whom a web application has signed in."""


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request, and what they may do."""

    name: str
    rights: frozenset[str]


LOCAL_CALLER = Caller("local", frozenset(RIGHTS))
"""The caller of each request to a server on loopback that has no tokens."""


class AccessToken(msgspec.Struct, frozen=True):
    """A token, of which only the digest is kept."""

    digest: bytes
    caller: Caller


def read_tokens(settings: Iterable[TokenSettings]) -> tuple[AccessToken, ...]:
    """Read the tokens that the settings name. Raises `ConfigurationError`."""
    return tuple(
        AccessToken(_compute_digest(read_token(token)), Caller(token.name, frozenset(token.rights)))
        for token in settings
    )


def _compute_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", errors="surrogateescape")).digest()


class Authorizer(Protocol):
    """Decides which requests are answered."""

    def authorize(self, request: Request, right: str) -> Caller:
        """Return the caller of a request. Raises `Problem`, or `MissingRight` without the right."""
        ...


def make_sign_in_problem() -> Problem:
    """Return the problem for a caller whom the application has not signed in."""
    return Problem(403, "not-signed-in", "sign in to the application first")


class SignedInAccess:
    """Lets in those whom a web application around the dashboard has signed in.

    The application writes the `Caller` into the scope of the request, as `CALLER_KEY`, or None if
    nobody is signed in. Web applications sign in with cookies, which a browser adds to each request
    by itself. So a change needs the header `Sec-Fetch-Site` or `Origin` of a page of this site, or
    a content type that no form can send.
    """

    def authorize(self, request: Request, right: str) -> Caller:
        """Return the caller of a request. Raises `Problem`, or `MissingRight` without the right."""
        if request.method not in SAFE_METHODS:
            _check_origin(request, is_program=False)
        caller = request.scope.get(CALLER_KEY)
        if not isinstance(caller, Caller):
            raise make_sign_in_problem()
        require_right(caller.name, caller.rights, right)
        return caller


class AccessControl:
    """Decides which requests are answered, with the tokens of the settings."""

    def __init__(self, settings: ServerSettings, tokens: tuple[AccessToken, ...]) -> None:
        self._tokens = tokens
        self._allowed_hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._checks_host = bool(settings.allowed_hosts) or not tokens

    def authorize(self, request: Request, right: str) -> Caller:
        """Return the caller of a request. Raises `Problem`, or `MissingRight` without the right."""
        self._check_host(request)
        if request.method not in SAFE_METHODS:
            authorization = request.headers.get("authorization", "")
            # A browser adds `Basic` to each request by itself, so it proves nothing here.
            is_program = not _is_basic(authorization) and bool(self._tokens or authorization)
            _check_origin(request, is_program=is_program)
        caller = self._authenticate(request)
        require_right(caller.name, caller.rights, right)
        return caller

    def _check_host(self, request: Request) -> None:
        hosts = request.headers.getlist("host")
        if len(hosts) > 1:
            raise Problem(400, "invalid-host", "the header Host is repeated")
        if self._checks_host and not self._is_own_host(hosts[0].lower() if hosts else ""):
            raise Problem(
                421,
                "unknown-host",
                "the header Host does not name this server; name it in server.allowed_hosts, and "
                "add tokens if others can reach it",
            )

    def _is_own_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return host in self._allowed_hosts or name in self._allowed_hosts or is_loopback(name)

    def _authenticate(self, request: Request) -> Caller:
        if not self._tokens:
            return LOCAL_CALLER
        values = request.headers.getlist("authorization")
        found = _find_token(values[0]) if len(values) == 1 else None
        digest = _compute_digest(found or "")
        # Compare every token, so that timing reveals nothing.
        callers = [
            token.caller for token in self._tokens if hmac.compare_digest(token.digest, digest)
        ]
        if found is None or not callers:
            detail = "send one of the configured tokens: `Authorization: Bearer TOKEN`"
            raise Problem(401, "missing-token", detail, headers={"WWW-Authenticate": "Bearer"})
        return callers[0]


def _find_token(authorization: str) -> str | None:
    """Return the token of a header `Authorization`; None if it has another form."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if not _is_basic(authorization):
        return None
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return decoded.partition(":")[2] or None


def _is_basic(authorization: str) -> bool:
    return authorization.partition(" ")[0].lower() == "basic"


def _check_origin(request: Request, *, is_program: bool) -> None:
    """Raise `Problem` for a change that a page of another site may have sent.

    Browsers send `Sec-Fetch-Site`, older ones only `Origin`. A request with neither needs proof
    that it comes from a program: a token, which is checked later (`is_program`), or a content type
    that no form of a page can send.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        if site.lower() == "same-origin":
            return
    elif origin is not None:
        if _find_authority(origin) == request.headers.get("host", "").lower() != "":
            return
        detail = (
            "the headers Origin and Host differ: a page of another site may not change anything "
            "here. Behind a proxy, let it pass the Host of the browser on"
        )
        raise Problem(403, "cross-site", detail)
    elif is_program or has_json_body(request):
        return
    else:
        detail = "a request that changes something needs `Content-Type: application/json`"
        raise Problem(403, "cross-site", detail)
    raise Problem(403, "cross-site", "a page of another site may not change anything here")


def _find_authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def has_json_body(request: Request) -> bool:
    """Return whether the content type of a request is JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    return kind.strip().lower() == "application/json"


Respond = Callable[[Request, Caller], Awaitable[Response]]
"""Answers a request of a caller who has the right of the route."""


Report = Callable[[Request, Problem], Response]
"""Makes the answer that reports a problem."""


def report_as_document(_: Request, problem: Problem) -> Response:
    """Return the problem as a problem document."""
    return problem.make_response()


class ProtectedEndpoint:
    """The endpoint of a route, as an ASGI application: checks the right, then answers.

    Errors become problem documents, or what `report` makes of them. An answer that takes too long
    is abandoned.
    """

    def __init__(
        self,
        access: Authorizer,
        right: str,
        respond: Respond,
        report: Report = report_as_document,
    ) -> None:
        self.right = right
        self._access = access
        self._respond = respond
        self._make_report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                caller = self._access.authorize(request, self.right)
                response = await self._respond(request, caller)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            response = self._report(request, error)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    def _report(self, request: Request, error: Exception) -> Response:
        problem = make_problem(error)
        if problem is None:
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
            problem = Problem(500, "internal-error", "the server failed; its log has the details")
        return self._make_report(request, problem)
