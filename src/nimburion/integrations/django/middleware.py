"""A middleware of Django: the jobs that a request enqueues inherit its id and its trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

from django.utils.decorators import sync_and_async_middleware

from nimburion.jobs.handling.context import CURRENT, RequestContext

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponseBase

__all__ = ["pass_request_on"]

PATH = f"{__name__}.pass_request_on"
"""What the setting `MIDDLEWARE` names."""


@sync_and_async_middleware
def pass_request_on(
    get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]:
    """Let jobs take `X-Request-ID` as their correlation id, and `traceparent` as their parent.

    The app `nimburion.integrations.django` adds it to the setting `MIDDLEWARE`.
    """
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponseBase:
            token = CURRENT.set(_read_request(request))
            try:
                response: HttpResponseBase = await get_response(request)
                return response
            finally:
                CURRENT.reset(token)

        return answer_async

    def answer(request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        token = CURRENT.set(_read_request(request))
        try:
            return get_response(request)
        finally:
            CURRENT.reset(token)

    return answer


def _read_request(request: HttpRequest) -> RequestContext | None:
    headers = request.headers
    return RequestContext.read(headers.get("X-Request-ID"), headers.get("traceparent"))
