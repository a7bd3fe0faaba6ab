"""A dashboard in this process, with something on each page."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import httpx
import pytest

from nimburion import Flow
from nimburion.core.access_rights import RIGHTS
from nimburion.core.bulk_operations import BulkAction, NewBulkOperation, start_bulk_operation
from nimburion.core.limits import LimitChange
from nimburion.core.session import Session
from nimburion.server.dashboard.page import AnyPage, DashboardAction
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from nimburion.server.dashboard.site import ACTIONS, PAGES
from tests.server.conftest import Api, MakeApi, send

PATH_VALUES = {
    "queue": "mail", "id": "a", "name": "daily", "fingerprint": "none", "limit": "job:send",
    "flow": "import",
}  # fmt: skip
"""The values of parameters of paths: what `fill` stores exists under these names."""
FORMS: dict[str, dict[str, str]] = {
    "queues.queue.pause": {"reason": "deploy", "for": "600"},
    "queues.pause": {"reason": "deploy", "for": "600"},
    "jobs.cancel": {"ids": "a"},
    "jobs.run-now": {"ids": "a"},
    "jobs.id.signals": {"name": "paid", "payload": '{"cents": 7}', "id": "", "reason": ""},
    "jobs.replay": {"ids": "c"},
    "jobs.purge": {"ids": "c"},
    "dead-letters.fingerprint.replay": {"ids": "a"},
    "dead-letters.fingerprint.purge": {"ids": "a"},
    "operations.replay": {"queue": "mail", "rate": "10"},
    "operations.run-now": {"queue": "mail"},
    "operations.cancel": {"ids": "b", "limit": "1"},
    "operations.delete": {"all": "true"},
    "flows.flow.cancel": {"reason": "wrong file"},
    "flows.flow.replay": {"reason": "the disk has room again"},
    "schedules.name.pause": {"reason": "deploy"},
    "limits.limit.change": {"concurrency": "2", "reason": "sale"},
    "jobs.id.arguments.replay": {"payload": '{"to": "b"}', "delete": "true"},
}
"""The fields of each form that has some, by the name of the action."""
TOKENS = {right: f"{right}-0123456789abcdef" for right in RIGHTS}
OWN_PAGE = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_action = pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)


def make_path(subject: AnyPage | DashboardAction) -> str:
    """Return the path of a page or of an action, with its parameters filled in."""
    return DASHBOARD_PATH + re.sub(r"\{(\w+)\}", lambda found: PATH_VALUES[found[1]], subject.path)


def sign_in(right: str, user: str = "me") -> dict[str, str]:
    """Return the header that a browser sends after somebody signed in with a token."""
    credentials = base64.b64encode(f"{user}:{TOKENS[right]}".encode()).decode()
    return {"Authorization": f"Basic {credentials}"}


async def fill(api: Api) -> None:
    """Store what the pages show: waiting jobs, a dead letter, a worker, a pause, a schedule."""
    backend = api.processor.backend
    await api.enqueue("a", "b", queue="mail")
    await api.fail("c", queue="mail")
    worker = Session(id="a", host="host-1", pid=7, queues=("other",), names=("send",))
    await backend.consuming.open_session(worker)
    await backend.maintenance.pause_queue(
        "other", paused=True, by="ops", reason="deploy", until=None
    )
    await backend.maintenance.change_limit(
        LimitChange(name="job:send", concurrency=9, by="ops", reason="trial")
    )
    await api.services.schedules.add("daily", "@daily", "send")
    flow = Flow("import")
    flow.add(send.job("ops"), name="mail", depends_on=flow.add_all([send.job("a")], name="parts"))
    await api.processor.enqueue_flow(flow, id="import")
    await start_bulk_operation(backend, NewBulkOperation(id="a", action=BulkAction.REPLAY))


@pytest.fixture(params=["memory", "sqlite"])
async def site(request: pytest.FixtureRequest, make_api: MakeApi, tmp_path: Path) -> Api:
    """A dashboard on loopback without tokens, on each backend that needs no server."""
    kind = request.param
    made: Api = await make_api("memory://" if kind == "memory" else f"sqlite:///{tmp_path}/jobs.db")
    await fill(made)
    return made


@pytest.fixture
async def guarded(make_api: MakeApi, monkeypatch: pytest.MonkeyPatch) -> Api:
    """A dashboard with one token for each right."""
    for right, token in TOKENS.items():
        monkeypatch.setenv(f"TOKEN_{right.upper()}", token)
    tokens = [
        {"name": right, "rights": [right], "variable": f"TOKEN_{right.upper()}"} for right in RIGHTS
    ]
    made: Api = await make_api(tokens=tokens, host="0.0.0.0")
    await fill(made)
    return made


async def send_form(
    api: Api, action: DashboardAction, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Send the form of an action as a browser without scripts does."""
    return await api.client.post(
        make_path(action), data=FORMS.get(action.name, {}), headers={**OWN_PAGE, **(headers or {})}
    )
