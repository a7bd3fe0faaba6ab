"""The jobs of the app. The worker finds them by the name of this module."""

from __future__ import annotations

from nimburion.integrations.django import processor
from orders.models import Order


@processor.job(queue="orders", max_retries=5)
def confirm_order(number: int) -> str:
    """Confirm an order. Running it twice does no harm."""
    order = Order.objects.get(pk=number)
    order.confirmed = True
    order.save(update_fields=["confirmed"])
    return f"confirmed {order.item}"
