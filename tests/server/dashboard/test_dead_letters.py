"""The pages of dead letters: groups, selections and changed arguments."""

from __future__ import annotations

import time

import pytest
from markupsafe import escape

from nimburion.core.diagnosis.failure_groups import FailureGroup, FailureGroups
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import AttemptError, NewJob, State
from nimburion.core.queries import JobFilter
from nimburion.core.session import Session
from nimburion.core.settlement import Failed
from nimburion.server.dashboard.rendering import format_json_text
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api, MakeApi
from tests.server.dashboard.conftest import OWN_PAGE

FINGERPRINT = "0123456789abcdef"
PATH = f"{DASHBOARD_PATH}/dead-letters"


async def fail_alike(api: Api, *ids: str) -> None:
    """Store dead letters that have the same error."""
    backend = api.processor.backend
    await backend.producing.enqueue(
        [NewJob(job_id, "charge", "bank", b'{"to": "x"}') for job_id in ids]
    )
    session = Session(id="f" * 32, queues=("bank",), names=("charge",))
    await backend.consuming.open_session(session)
    request = ReserveRequest(total=len(ids), lanes=(Lane("bank", "charge"),))
    reply = await backend.consuming.exchange(session.id, 1, [], request)
    error = AttemptError(1, "failure", "Declined", "no money", fingerprint=FINGERPRINT)
    settled = [Failed(one.lease, "exhausted", error) for one in reply.deliveries]
    await backend.consuming.exchange(session.id, 2, settled, ReserveRequest(total=0))
    await backend.consuming.close_session(session.id)


async def test_groups_say_how_many_failed_lately(site: Api) -> None:
    await fail_alike(site, "x", "y")
    twin = (await site.client.get(PATH, params={"format": "json"})).json()
    found = {row["key"]: (row["group"]["count"], row["recent"]) for row in twin["groups"]}
    assert found == {FINGERPRINT: (2, 2), "none": (1, 1)}
    twin = (await site.client.get(PATH, params={"format": "json", "queue": "bank"})).json()
    assert [row["key"] for row in twin["groups"]] == [FINGERPRINT]
    html = (await site.client.get(PATH)).text
    assert f'href="{PATH}/{FINGERPRINT}"' in html
    assert ">new<" in html


async def test_the_error_that_grew_comes_before_the_one_that_is_always_there(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, now = await make_api(), time.time()

    def make_group(fingerprint: str, first: float, *counts: int) -> FailureGroup:
        return FailureGroup(
            fingerprint=fingerprint, count=9, first=first, last=now, names=("send",),
            type="Broken", message="", job_id="a", counts_since=counts,
        )  # fmt: skip

    async def group_failures(_: JobFilter, **__: object) -> FailureGroups:
        groups = [
            make_group("a" * 16, now - 90_000, 500, 1_010),
            make_group("b" * 16, now - 90_000, 40, 43),
            make_group("c" * 16, now - 60, 30, 30),
        ]
        return FailureGroups(groups=groups, examined=9, complete=True)

    monkeypatch.setattr(api.processor.backend.reads, "group_failures", group_failures)
    for sort, keys in {"growth": "bca", "recent": "abc"}.items():
        twin = await api.client.get(PATH, params={"format": "json", "sort": sort})
        assert [row["key"][0] for row in twin.json()["groups"]] == list(keys)
    html = (await api.client.get(f"{PATH}?sort=growth")).text
    assert '<td class="number" data-label="Hour before">3</td>' in html
    assert html.count(">new<") == 1


async def test_a_group_has_its_own_jobs_only(site: Api) -> None:
    await fail_alike(site, "x", "y")
    twin = (await site.client.get(f"{PATH}/{FINGERPRINT}", params={"format": "json"})).json()
    assert sorted(job["id"] for job in twin["jobs"]) == ["x", "y"]
    twin = (await site.client.get(f"{PATH}/none", params={"format": "json"})).json()
    assert [job["id"] for job in twin["jobs"]] == ["a"]
    response = await site.client.get(f"{PATH}/nonsense")
    assert response.status_code == 422
    assert "16 hexadecimal digits" in response.text


async def test_a_selection_is_replayed(site: Api) -> None:
    await fail_alike(site, "x", "y", "z")
    headers = {**OWN_PAGE, "HX-Request": "true"}
    response = await site.client.post(
        f"{PATH}/{FINGERPRINT}/replay", content="ids=x&ids=y&ids=b", headers=headers
    )
    assert "2 replayed. 1 are no dead letters." in response.text
    twin = (await site.client.get(f"{PATH}/{FINGERPRINT}", params={"format": "json"})).json()
    assert [job["id"] for job in twin["jobs"]] == ["z"]


@pytest.mark.parametrize("flags", [{}, {"dry_run": "true"}])
async def test_arguments_are_checked_before_anything_is_stored(
    site: Api, flags: dict[str, str]
) -> None:
    headers = {**OWN_PAGE, "HX-Request": "true"}
    path = f"{DASHBOARD_PATH}/jobs/a/arguments/replay"
    before = await site.get("/jobs")
    response = await site.client.post(path, data={"payload": '{"to": 1}', **flags}, headers=headers)
    assert response.status_code == 422
    assert "to" in response.text
    assert await site.get("/jobs") == before
    response = await site.client.post(
        path, data={"payload": '{"to": "b"}', **flags}, headers=headers
    )
    assert "fit the handler" in response.text
    assert (len((await site.get("/jobs"))["jobs"]) > len(before["jobs"])) is not bool(flags)


async def test_arguments_are_shown_for_editing_as_they_are_stored(site: Api) -> None:
    html = (await site.client.get(f"{DASHBOARD_PATH}/jobs/a/arguments")).text
    assert "{&#34;to&#34;:&#34;a&#34;,&#34;secret&#34;:&#34;hush&#34;}</textarea>" in html
    html = (await site.client.get(f"{DASHBOARD_PATH}/jobs/b/arguments")).text
    assert "The job is pending" in html
    assert "<textarea" not in html


def test_hidden_characters_become_json_escapes() -> None:
    assert format_json_text('{"a":"\u202e\x7f"}\r\n') == "{&#34;a&#34;:&#34;\\u202e\\u007f&#34;}\n"


@pytest.mark.parametrize(
    ("written", "status", "message"),
    [
        ('{"to": "somebody else"}', 200, "Nothing was changed."),
        ('{"to": ', 400, "a field is no JSON"),
        ('{"nowhere": "</textarea><b>"}', 422, "nowhere"),
    ],
)
async def test_a_check_without_scripts_keeps_what_was_written(
    site: Api, written: str, status: int, message: str
) -> None:
    response = await site.client.post(
        f"{DASHBOARD_PATH}/jobs/a/arguments/replay",
        data={"payload": written, "delete": "true", "dry_run": "true"},
        headers=OWN_PAGE,
    )
    assert response.status_code == status, response.text
    assert f">{escape(written)}</textarea>" in response.text
    assert 'value="true" checked' in response.text
    assert message in response.text
    kind = "done" if status == 200 else "failed"
    assert f'<p class="message {kind}">' in response.text
    assert (await site.processor.backend.reads.get_job("a")).state is State.FAILED
