"""The addresses of the project."""

from __future__ import annotations

from django.urls import path
from orders.views import create_order, show_order

urlpatterns = [path("orders/", create_order), path("orders/<int:number>/", show_order)]
