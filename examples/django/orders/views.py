"""Create an order, and show one."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET, require_POST

from orders.jobs import confirm_order
from orders.models import Order


@require_POST
def create_order(request: HttpRequest) -> JsonResponse:
    """Store the order and the job that confirms it."""
    with transaction.atomic():
        order = Order.objects.create(item=request.POST["item"])
        job = confirm_order.enqueue_sync(order.pk)
    return JsonResponse({"order": order.pk, "job": job}, status=202)


@require_GET
def show_order(_: HttpRequest, number: int) -> JsonResponse:
    """Show the state of an order."""
    order = get_object_or_404(Order, pk=number)
    return JsonResponse({"item": order.item, "confirmed": order.confirmed})
