"""An order is confirmed by its job."""

from __future__ import annotations

from unittest import mock

from django.test import TransactionTestCase

from nimburion.integrations.django import processor
from nimburion.integrations.django.testing import run_jobs
from orders.models import Order


class OrderTests(TransactionTestCase):
    """Requests, and the jobs that they cause."""

    def test_an_order_is_confirmed(self) -> None:
        """The job runs after the request."""
        created = self.client.post("/orders/", {"item": "tea"}).json()
        address = f"/orders/{created['order']}/"
        self.assertEqual(self.client.get(address).json(), {"item": "tea", "confirmed": False})
        self.assertGreaterEqual(run_jobs(), 1)
        self.assertEqual(self.client.get(address).json(), {"item": "tea", "confirmed": True})
        self.assertEqual(processor.sync.get_status(created["job"]).result, "confirmed tea")

    def test_a_failed_request_leaves_neither_order_nor_job(self) -> None:
        """Both are in one transaction."""
        run_jobs()
        with (
            mock.patch("orders.views.confirm_order.enqueue_sync", side_effect=ConnectionError),
            self.assertRaises(ConnectionError),
        ):
            self.client.post("/orders/", {"item": "tea"})
        self.assertEqual((Order.objects.count(), run_jobs()), (0, 0))
