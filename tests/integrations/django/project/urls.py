from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from tests.integrations.django.project.shop.jobs import describe


def order(_: HttpRequest, word: str) -> HttpResponse:
    return HttpResponse(describe.enqueue_sync(word))


async def order_async(_: HttpRequest, word: str) -> HttpResponse:
    return HttpResponse(await describe.enqueue(word))


urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/<word>", order),
    path("async-orders/<word>", order_async),
    path("jobs/", include("nimburion.integrations.django.dashboard")),
]
