"""The pages of bulk operations: a preview, the start, the progress."""

from __future__ import annotations

import re

import pytest

from nimburion.core.bulk_operations import (
    BulkAction,
    BulkState,
    get_bulk_operation,
    list_bulk_operations,
)
from nimburion.core.queries import JobFilter
from nimburion.server.dashboard.pages.bulk_operations import describe_filter
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api
from tests.server.dashboard.conftest import OWN_PAGE, sign_in
from tests.server.dashboard.test_dead_letters import FINGERPRINT, fail_alike

PATH = f"{DASHBOARD_PATH}/operations"


async def test_a_preview_counts_and_changes_nothing(site: Api) -> None:
    await fail_alike(site, *(f"x{number}" for number in range(12)))
    before = (await site.processor.backend.reads.list_jobs()).jobs
    query = {"action": "replay", "q": f"fingerprint:{FINGERPRINT}", "format": "json"}
    twin = (await site.client.get(f"{PATH}/new", params=query)).json()
    assert (twin["count"], twin["complete"], len(twin["first"])) == (12, True, 10)
    assert twin["fields"] == [["fingerprint", FINGERPRINT]]
    assert (await site.processor.backend.reads.list_jobs()).jobs == before


async def test_the_form_of_a_preview_starts_what_it_shows(site: Api) -> None:
    await fail_alike(site, "x", "y")
    query = {"action": "replay", "q": f"fingerprint:{FINGERPRINT} created:2h failures:1"}
    html = (await site.client.get(f"{PATH}/new", params=query)).text
    assert '<input name="why"' in html
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]+)">', html)
    form = {name: value.replace("&#43;", "+") for name, value in fields if name != "action"}
    assert set(form) == {"fingerprint", "created_from", "min_failures"}
    response = await site.client.post(
        f"{PATH}/replay", data={**form, "rate": "10"}, headers=OWN_PAGE
    )
    assert response.status_code == 303, response.text
    (started, _) = (await list_bulk_operations(site.processor.backend)).operations
    assert (started.action, started.rate, started.origin) == (BulkAction.REPLAY, 10, "dashboard")
    assert (started.which.fingerprint, started.which.min_failures) == (FINGERPRINT, 1)
    await site.services.bulk_operations.tick()
    twin = (await site.client.get(PATH, params={"format": "json"})).json()
    row = next(row for row in twin["operations"] if row["operation"]["id"] == started.id)
    assert row["operation"]["done"] == 2
    assert row["jobs"].startswith(f"fingerprint:{FINGERPRINT} created-from:")


async def test_a_running_operation_can_be_cancelled_once(site: Api) -> None:
    assert f'action="{PATH}/a/cancel"' in (await site.client.get(PATH)).text
    await site.client.post(f"{PATH}/a/cancel", headers=OWN_PAGE)
    assert (await get_bulk_operation(site.processor.backend, "a")).state is BulkState.CANCELLED
    assert f'action="{PATH}/a/cancel"' not in (await site.client.get(PATH)).text


@pytest.mark.parametrize("query", ["nonsense:1", "state:dead", "created:soon"])
async def test_qualifiers_that_cannot_be_used_offer_no_start(site: Api, query: str) -> None:
    html = (await site.client.get(f"{PATH}/new", params={"q": query})).text
    assert '<p class="message warning">' in html
    assert '<form class="act' not in html


async def test_without_the_right_a_preview_has_no_form(guarded: Api) -> None:
    query = {"action": "delete", "q": "queue:mail"}
    html = (await guarded.client.get(f"{PATH}/new", params=query, headers=sign_in("read"))).text
    assert "1 job" in html
    assert '<form class="act' not in html


def test_many_ids_are_counted() -> None:
    assert describe_filter(JobFilter(ids=("a", "b"))) == "ids:a,b"
    assert describe_filter(JobFilter(ids=tuple("abcd"))) == "ids:(4)"
