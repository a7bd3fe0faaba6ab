"""The page of the backend: the results of all checks, and what to do."""

from __future__ import annotations

import msgspec

from nimburion.core.backend import Capabilities
from nimburion.server.api.operation import NoQuery
from nimburion.server.checks import ChecksReport
from nimburion.server.dashboard.page import DashboardPage, PageRequest

CHECKS_AGE = 30.0


class BackendData(msgspec.Struct, frozen=True, kw_only=True):
    """The backend and the latest checks."""

    description: str
    capabilities: Capabilities
    report: ChecksReport | None
    """None before the first checks are done."""


async def read_backend(request: PageRequest[NoQuery]) -> BackendData:
    """Run the checks if the last ones are old. Slow ones continue in the background."""
    backend = request.readings.backend
    report = await request.readings.peek(
        "checks", request.services.checks.run, CHECKS_AGE, waits=True
    )
    return BackendData(
        description=backend.describe(), capabilities=backend.capabilities, report=report
    )


BACKEND = DashboardPage(
    path="/backend",
    title="Backend",
    section="Backend",
    read=read_backend,
    template="backend.html",
    tables=("report.checks",),
    interval=2.0,
)
