"""Pages and actions: only with their right, never for another site, each change with a record."""

from __future__ import annotations

import re

import pytest

from nimburion.core.access_rights import RIGHTS
from nimburion.core.audit import list_audit
from nimburion.server.dashboard.page import AnyPage, DashboardAction
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from nimburion.server.dashboard.site import ACTIONS
from tests.server.conftest import OWN, Api
from tests.server.dashboard.conftest import (
    OWN_PAGE,
    TOKENS,
    every_action,
    every_page,
    make_path,
    send_form,
    sign_in,
)
from tests.server.test_access import BROKEN_ORIGIN, read_everything

FORMS_OF_A_PAGE = ("", "?format=json", "?format=fragment")
OTHER_SITES: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
    {"Origin": BROKEN_ORIGIN},
    {},
)
"""The headers of forms that pages of other sites send; the last one hides where it comes from."""


@every_page
async def test_a_page_needs_its_right(guarded: Api, page: AnyPage) -> None:
    for right in RIGHTS:
        if right == page.right:
            continue
        for form in FORMS_OF_A_PAGE:
            response = await guarded.client.get(make_path(page) + form, headers=sign_in(right))
            assert response.status_code == 403, (right, form)
            assert "mail" not in response.text
    response = await guarded.client.get(make_path(page), headers=sign_in(page.right))
    assert response.status_code == 200


@every_page
async def test_a_browser_without_a_token_is_asked_to_sign_in(guarded: Api, page: AnyPage) -> None:
    for headers in ({}, {"Authorization": "Basic bWU6d3Jvbmc="}, {"Authorization": "Basic !"}):
        response = await guarded.client.get(make_path(page), headers=headers)
        assert response.status_code == 401
        challenge = 'Basic realm="nimburion", charset="UTF-8"'
        assert response.headers["WWW-Authenticate"] == challenge
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "mail" not in response.text


async def test_the_user_name_of_basic_may_be_anything(guarded: Api) -> None:
    for user in ("", "read", "somebody@example.com"):
        response = await guarded.client.get(DASHBOARD_PATH, headers=sign_in("read", user))
        assert response.status_code == 200
        assert "Signed in as read" in response.text


async def test_the_api_does_not_ask_a_browser_to_sign_in(guarded: Api) -> None:
    response = await guarded.client.get("/api/v1/queues")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@every_action
async def test_a_form_works_only_with_the_right_of_its_operation(
    guarded: Api, action: DashboardAction
) -> None:
    before = await read_everything(guarded)
    for right in RIGHTS:
        if right != action.operation.right:
            response = await send_form(guarded, action, sign_in(right))
            assert response.status_code == 403, right
            assert await read_everything(guarded) == before, right
    assert (await send_form(guarded, action)).status_code == 401
    assert await read_everything(guarded) == before


@every_action
async def test_a_form_without_a_script_leads_back_to_a_page(
    guarded: Api, action: DashboardAction
) -> None:
    right = action.operation.right
    response = await send_form(guarded, action, sign_in(right))
    assert response.status_code == 303, response.text
    record = (await list_audit(guarded.processor.backend)).records[0]
    assert (record.by, record.origin, record.outcome) == (right, "dashboard", "done")
    assert action.operation.action is not None
    page = await guarded.client.get(response.headers["Location"], headers=sign_in("read"))
    assert page.status_code == 200
    assert '<p class="message done">' in page.text


@every_action
async def test_a_form_with_a_script_answers_with_a_notice(
    site: Api, action: DashboardAction
) -> None:
    response = await send_form(site, action, {"HX-Request": "true"})
    assert response.status_code == 200, response.text
    assert response.text.startswith('<p class="message done">')


@every_action
async def test_a_page_of_another_site_changes_nothing(
    site: Api, guarded: Api, action: DashboardAction
) -> None:
    for api, signed in ((site, {}), (guarded, sign_in(action.operation.right))):
        before = await read_everything(api)
        for headers in OTHER_SITES:
            request = api.client.build_request(
                "POST", make_path(action), data={"reason": "x"}, headers={**headers, **signed}
            )
            request.headers["Content-Type"] = OWN_PAGE["Content-Type"]
            response = await api.client.send(request)
            assert response.status_code == 403, headers
            assert await read_everything(api) == before, headers


async def test_a_link_of_another_site_shows_no_notice(site: Api) -> None:
    path = f"{DASHBOARD_PATH}/queues?notice=queues.queue.pause"
    for other, shown in (("cross-site", False), ("none", False), ("same-origin", True)):
        html = (await site.client.get(path, headers={"Sec-Fetch-Site": other})).text
        assert ("Queue is paused." in html) is shown


@every_page
async def test_buttons_without_the_right_are_not_shown(guarded: Api, page: AnyPage) -> None:
    html = (await guarded.client.get(make_path(page), headers=sign_in(page.right))).text
    assert re.findall(r"<form class=\"act", html) == []


async def test_buttons_with_the_right_are_shown(site: Api) -> None:
    html = (await site.client.get(f"{DASHBOARD_PATH}/queues")).text
    assert f'action="{DASHBOARD_PATH}/queues/mail/pause"' in html
    assert f'action="{DASHBOARD_PATH}/queues/other/resume"' in html


async def test_every_action_is_audited_and_unsafe() -> None:
    for action in ACTIONS:
        assert action.operation.action is not None, action.path
        assert action.operation.method != "GET", action.path
        assert action.operation.right in {"operate", "admin", "stacks"}, action.path


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        ("for=600&for=60", "application/x-www-form-urlencoded", 422),
        ("nonsense=1", "application/x-www-form-urlencoded", 422),
        ("for=never", "application/x-www-form-urlencoded", 422),
        ("reason=a%00b", "application/x-www-form-urlencoded", 422),
        ("reason", "application/x-www-form-urlencoded", 400),
        ('{"for": 60}', "application/json", 415),
    ],
)
async def test_a_form_that_does_not_fit_changes_nothing(
    site: Api, content: str, kind: str, status: int
) -> None:
    headers = {**OWN_PAGE, "Content-Type": kind}
    path = f"{DASHBOARD_PATH}/queues/mail/pause"
    response = await site.client.post(path, content=content, headers=headers)
    assert response.status_code == status, response.text
    queues = await site.processor.backend.reads.list_queues()
    assert [queue.paused for queue in queues if queue.name == "mail"] == [False]


async def test_a_bearer_token_still_works(guarded: Api) -> None:
    headers = {"Authorization": f"Bearer {TOKENS['read']}"}
    assert (await guarded.client.get(DASHBOARD_PATH, headers=headers)).status_code == 200
