"""Errors of the management server, as problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from nimburion.core import errors

PROBLEM_TYPE = "application/problem+json"
_RETRY_AFTER = {"Retry-After": "1"}


class InvalidPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part of a request that is wrong."""

    detail: str
    parameter: str | None = None
    """The name of the parameter of the path or of the query."""
    pointer: str | None = None
    """The place in the body, as a JSON pointer in a fragment: `#/rights/0`."""
    header: str | None = None


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of each answer that reports an error."""

    type: str
    """`urn:nimburion:problem:` and the code, for programs."""
    title: str
    status: int
    detail: str
    """What was wrong, and what to do."""
    errors: tuple[InvalidPart, ...] = ()


class Problem(Exception):
    """A request that is answered with a problem document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        parts: tuple[InvalidPart, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.parts = parts
        self.headers: dict[str, str] = dict(headers or {})

    def make_response(self) -> Response:
        """Return the answer to the request."""
        document = ProblemDocument(
            type=f"urn:nimburion:problem:{self.code}",
            title=self.code.replace("-", " ").capitalize(),
            status=self.status,
            detail=self.detail,
            errors=self.parts,
        )
        content = msgspec.json.encode(document)
        return Response(content, self.status, self.headers, PROBLEM_TYPE)


def make_problem(error: Exception) -> Problem | None:
    """Return the problem for an error that was raised while a request was answered; None for a
    defect.
    """
    if isinstance(error, Problem):
        return error
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            retry = status == HTTPStatus.SERVICE_UNAVAILABLE
            detail = " ".join(str(error).split()) or _TIMEOUT_DETAIL
            return Problem(status, code, detail, headers=_RETRY_AFTER if retry else None)
    return None


_TIMEOUT_DETAIL = (
    "no answer in time: the backend is slow or does not answer. Repeat the request; "
    "/api/v1/checks says how fast the backend is"
)
"""The detail of an error without a text of its own: a `TimeoutError`."""

_KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (errors.MissingRight, 403, "missing-right"),
    (errors.NotDeadLetter, 409, "no-dead-letter"),
    (errors.PastTime, 409, "past-time"),
    (errors.BulkOperationConflict, 409, "operation-conflict"),
    (errors.WorkerNotFound, 404, "worker-not-found"),
    (errors.JobNotFound, 404, "job-not-found"),
    (errors.ScheduleNotFound, 404, "schedule-not-found"),
    (errors.BulkOperationNotFound, 404, "operation-not-found"),
    (errors.FlowNotFound, 404, "flow-not-found"),
    (errors.LimitNotFound, 404, "limit-not-found"),
    (errors.TooManyBulkOperations, 409, "too-many-operations"),
    (errors.JobConflict, 409, "job-conflict"),
    (errors.DuplicateJob, 409, "duplicate-job"),
    (errors.InvalidJob, 422, "invalid-request"),
    (errors.DefinitionError, 422, "invalid-request"),
    (errors.Unstorable, 422, "invalid-request"),
    (errors.NotSupported, 422, "not-supported"),
    (errors.BackendFull, 507, "backend-full"),
    (errors.BackendError, 503, "backend-unavailable"),
    (errors.NotOpen, 503, "stopping"),
    (TimeoutError, 504, "timeout"),
)
"""For each error: the status and the code of its answer. The first kind that fits counts."""


def make_http_problem(status: int, headers: Mapping[str, str] | None) -> Problem:
    """Return the problem for a request that no route answers."""
    code, detail = {
        404: (
            "not-found",
            "nothing is at this path; /api/v1/openapi.json of the management server lists its API",
        ),
        405: ("method-not-allowed", "this path takes other methods; see the header Allow"),
    }.get(status, (HTTPStatus(status).phrase.lower().replace(" ", "-"), HTTPStatus(status).phrase))
    return Problem(status, code, detail, headers=headers)
