"""The routes of the dashboard."""

from __future__ import annotations

from functools import partial

from starlette.routing import Route

from nimburion.server.access import Authorizer, ProtectedEndpoint
from nimburion.server.dashboard.responses import (
    DASHBOARD_PATH,
    answer_asset,
    answer_page,
    perform_action,
    redirect_to_dashboard,
    report_on_page,
)
from nimburion.server.dashboard.site import ACTIONS, PAGES
from nimburion.server.services import ManagementServices


def make_dashboard_routes(services: ManagementServices, access: Authorizer) -> list[Route]:
    """Return the routes of all pages and actions, and of the static files."""
    return [
        Route(
            "/",
            ProtectedEndpoint(access, "read", redirect_to_dashboard, report_on_page),
            methods=["GET"],
            name="index",
        ),
        Route(
            f"{DASHBOARD_PATH}/static/{{file}}",
            ProtectedEndpoint(access, "read", answer_asset, report_on_page),
            methods=["GET"],
            name="static",
        ),
        *(
            Route(
                DASHBOARD_PATH + page.path,
                ProtectedEndpoint(
                    access, page.right, partial(answer_page, page, services), report_on_page
                ),
                methods=["GET"],
                name=f"page-{page.name}",
            )
            for page in PAGES
        ),
        *(
            Route(
                DASHBOARD_PATH + action.path,
                ProtectedEndpoint(
                    access,
                    action.operation.right,
                    partial(perform_action, action, services),
                    report_on_page,
                ),
                methods=["POST"],
                name=f"action-{action.name}",
            )
            for action in ACTIONS
        ),
    ]
