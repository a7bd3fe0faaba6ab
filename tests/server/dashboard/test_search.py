"""The search of all pages: what a text names is opened at once."""

from __future__ import annotations

import pytest

from nimburion.core.flows import NewFlow
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.session import Session
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api

SEARCH = f"{DASHBOARD_PATH}/search"


@pytest.fixture
async def filled(api: Api) -> Api:
    """Jobs with everything that a text may name."""
    options = JobOptions(
        tenant="acme inc",
        tags=("media",),
        correlation_id="req-17",
        limit_keys={"export:customer": "megacorp"},
    )
    await api.processor.backend.producing.enqueue(
        [
            NewJob("01a2-first-xyz1", "send", "mail", b"{}", options=options),
            NewJob("01a2-second-xyz2", "export", "exports", b"{}"),
        ]
    )
    flow = NewFlow(id="flow-17b4", name="import", members=0)
    await api.processor.backend.producing.enqueue([], [flow])
    worker = Session(id="w" * 28 + "f95d", host="web-7", queues=("mail",), names=("send",))
    await api.processor.backend.consuming.open_session(worker)
    beside = Session(id="x" * 32, host="web-7", queues=("mail",), names=("send",))
    await api.processor.backend.consuming.open_session(beside)
    return api


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("01a2-first-xyz1", "/jobs/01a2-first-xyz1"),
        ("xyz2", "/jobs/01a2-second-xyz2"),
        (" 01a2-second ", "/jobs/01a2-second-xyz2"),
        ("mail", "/queues/mail"),
        ("import", "/flows?name=import"),
        ("17b4", "/flows/flow-17b4"),
        ("flow-17b4", "/flows/flow-17b4"),
        ("export", "/jobs?q=name%3Aexport"),
        ("acme inc", "/jobs?q=tenant%3A%22acme%20inc%22"),
        ("media", "/jobs?q=tag%3Amedia"),
        ("req-17", "/jobs?q=correlation%3Areq-17"),
        ("megacorp", "/limits?limit=export%3Acustomer&key=megacorp"),
        ("f95d", f"/workers#worker-{'w' * 28}f95d"),
        ("wwwwwwww", f"/workers#worker-{'w' * 28}f95d"),
        ("web-7", f"/workers#worker-{'w' * 28}f95d"),
        ("0123456789abcdef", "/dead-letters/0123456789abcdef"),
        ("state:failed queue:mail", "/jobs?q=state%3Afailed+queue%3Amail"),
    ],
)
async def test_what_a_text_names_is_opened(filled: Api, text: str, path: str) -> None:
    response = await filled.client.get(SEARCH, params={"q": text})
    assert response.status_code == 303, response.text
    assert response.headers["Location"] == f"{DASHBOARD_PATH}{path}"
    found = await filled.client.get(response.headers["Location"])
    assert found.status_code == 200


async def test_several_matches_are_listed(filled: Api) -> None:
    await filled.enqueue("mail-1", name="mail")
    html = (await filled.client.get(SEARCH, params={"q": "mail"})).text
    assert f'href="{DASHBOARD_PATH}/queues/mail"' in html
    assert f'href="{DASHBOARD_PATH}/jobs?q=name%3Amail"' in html


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("exprot", 'Did you mean <a href="?q=export">export</a>?'),
        ("stat:failed", "there is no qualifier &#39;stat&#39;"),
        ("<b>", "Nothing is named <code>&lt;b&gt;</code>"),
        ("", "Write the id of a job"),
    ],
)
async def test_a_text_that_names_nothing_gets_a_suggestion(
    filled: Api, text: str, answer: str
) -> None:
    response = await filled.client.get(SEARCH, params={"q": text})
    assert response.status_code == 200
    assert answer in response.text


async def test_an_id_in_the_search_for_jobs_opens_the_job(filled: Api) -> None:
    for text in ("01a2-first-xyz1", "xyz1", "id:01a2-first"):
        response = await filled.client.get(f"{DASHBOARD_PATH}/jobs", params={"q": text})
        assert response.headers["Location"] == f"{DASHBOARD_PATH}/jobs/01a2-first-xyz1", text
    listed = await filled.client.get(f"{DASHBOARD_PATH}/jobs", params={"q": "queue:mail"})
    assert listed.status_code == 200
