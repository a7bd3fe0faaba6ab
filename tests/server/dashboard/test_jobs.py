"""The pages of jobs: searching, acting on a selection, and one job with its causes and errors."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest

from nimburion import Flow, job
from nimburion.actions.search import UnusableSearch, parse_search
from nimburion.core.job import AttemptError, JobOptions, NewJob, State
from nimburion.core.queries import Page
from nimburion.server.dashboard.pages.jobs.job import group_errors
from nimburion.server.dashboard.pages.jobs.job_contents import TracebackPart, split_traceback
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api
from tests.server.dashboard.conftest import OWN_PAGE, sign_in

JOBS = f"{DASHBOARD_PATH}/jobs"


@job
async def wait_for_nothing() -> None: ...


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stat:failed", "there is no qualifier 'stat'; did you mean 'state'?"),
        ("state:faild", "there is no state 'faild'; did you mean 'failed'?"),
        ("reason:x", "there is no reason 'x'"),
        ("queue:a queue:b", "queue: give it once"),
        ("queue:", "queue: give a value behind the colon"),
        ("failures:-1", "failures: give a whole number"),
        ("created:yesterday", "created: give an age in m, h or d"),
        ("queue:<b>", "queue"),
    ],
)
async def test_an_unusable_search_says_what_to_write(api: Api, text: str, problem: str) -> None:
    with pytest.raises(UnusableSearch, match=re.escape(problem)):
        parse_search(text, 0.0)
    twin = (await api.client.get(f"{JOBS}?{urlencode({'q': text, 'format': 'json'})}")).json()
    assert problem in twin["invalid"]
    assert twin["jobs"] == []


async def test_a_search_that_ends_at_its_budget_says_so(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimburion.server.dashboard.pages.jobs.job_list.SEARCH_BUDGET", 2)
    await api.enqueue("a", "b", "c")
    for query, partial in (("state:completed", True), ("id:a", False)):
        parameters = {"q": query}
        html = (await api.client.get(JOBS, params=parameters)).text
        twin = (await api.client.get(JOBS, params={**parameters, "format": "json"})).json()
        assert twin["partial"] is ("among the 2 newest jobs" in html) is partial


async def test_a_page_of_jobs_leads_to_older_ones(api: Api) -> None:
    await api.enqueue(*(f"job-{number}" for number in range(60)))
    first = (await api.client.get(JOBS)).text
    assert first.count('class="select"') == 50
    older = re.search(r'href="(\?q=&amp;after=[^"]+)"', first)
    assert older is not None
    second = (await api.client.get(JOBS + older[1].replace("&amp;", "&"))).text
    assert second.count('class="select"') == 10
    assert 'id="job-job-0"' in second


async def test_a_part_of_an_id_finds_the_job(api: Api) -> None:
    await api.enqueue("01a2-first-xyz1", "01a2-second-xyz2")
    for text, found in (("xyz2", 1), ("01a2", 2), ("id:01a2-first", 1), ("yz2", 0), ("second", 0)):
        twin = (await api.client.get(f"{JOBS}?format=json&q={text}")).json()
        assert len(twin["jobs"]) == found, text


async def test_a_selection_is_cancelled_in_one_step(api: Api) -> None:
    await api.enqueue("a", "b", "c")
    response = await api.client.post(
        f"{JOBS}/cancel",
        content="ids=a&ids=b&ids=none",
        headers={**OWN_PAGE, "HX-Request": "true"},
    )
    assert "Jobs: 2 cancelled, 1 not found." in response.text
    counts = await api.processor.backend.reads.count_jobs()
    assert (counts[State.CANCELLED], counts[State.PENDING]) == (2, 1)


async def test_a_job_begins_with_why_it_does_not_run(api: Api) -> None:
    await api.enqueue("a", queue="mail")
    await api.processor.backend.maintenance.pause_queue(
        "mail", paused=True, by="ops", reason="deploy"
    )
    html = (await api.client.get(f"{JOBS}/a")).text
    assert "is paused by ops, reason: deploy" in html
    assert html.index("is paused by ops") < html.index("No worker is live")


async def test_a_job_links_to_those_of_its_tenant(api: Api) -> None:
    options = JobOptions(tenant='a "b" & c', correlation_id="req 1")
    await api.processor.backend.producing.enqueue(
        [NewJob("a", "send", "mail", b"{}", options=options)]
    )
    html = (await api.client.get(f"{JOBS}/a")).text
    link = re.search(r'href="([^"]+)">req 1<', html)
    assert link is not None
    found = (await api.client.get(f"{link[1]}&format=json")).json()
    assert [job["id"] for job in found["jobs"]] == ["a"]


async def test_a_job_links_to_those_with_its_tags(api: Api) -> None:
    options = JobOptions(tags=("media", "eu"))
    await api.processor.backend.producing.enqueue(
        [NewJob("a", "send", "mail", b"{}", options=options), NewJob("b", "send", "mail", b"{}")]
    )
    html = (await api.client.get(f"{JOBS}/a")).text
    link = re.search(r'href="([^"]+)">eu<', html)
    assert link is not None
    found = (await api.client.get(f"{link[1]}&format=json")).json()
    assert [job["id"] for job in found["jobs"]] == ["a"]


async def test_a_suspended_job_says_what_it_waits_for_and_leads_to_its_flow(api: Api) -> None:
    flow = Flow("import")
    first = flow.add(wait_for_nothing.job())
    flow.add(wait_for_nothing.job(), depends_on=first)
    await api.processor.enqueue_flow(flow, id="i")
    html = (await api.client.get(f"{JOBS}/i.wait_for_nothing-2")).text
    assert "It waits for job" in html
    assert "which is pending" in html
    link = re.search(r'href="([^"]+)">i<', html)
    assert link is not None
    found = (await api.client.get(f"{link[1]}?format=json")).json()
    jobs = [row["job"] for row in found["members"]]
    assert {job["id"]: job["state"] for job in jobs} == {
        "i.wait_for_nothing": "pending",
        "i.wait_for_nothing-2": "suspended",
    }
    for page in (JOBS, f"{JOBS}?q=state:suspended", DASHBOARD_PATH):
        assert (await api.client.get(page)).status_code == 200


async def test_a_job_that_does_not_exist_is_not_found(api: Api) -> None:
    response = await api.client.get(f"{JOBS}/none")
    assert response.status_code == 404
    assert "none" in response.text


async def test_the_stored_text_of_the_arguments_is_shown(api: Api) -> None:
    payload = b'{"n": 12345678901234567890123,  "to":"\\u00e4"}'
    await api.processor.backend.producing.enqueue([NewJob("a", "send", "mail", payload)])
    html = (await api.client.get(f"{JOBS}/a")).text
    assert "{&#34;n&#34;: 12345678901234567890123,  &#34;to&#34;:&#34;\\u00e4&#34;}" in html


async def test_the_command_that_enqueues_a_job_again_is_quoted(api: Api) -> None:
    payload = b'{"to":"a\'b; rm -rf"}'
    await api.processor.backend.producing.enqueue([NewJob("a", "send", "mail", payload)])
    twin = (await api.client.get(f"{JOBS}/a?format=json")).json()
    words = ["nimburion", "enqueue", "send", "--args", payload.decode(), "--queue", "mail"]
    assert shlex.split(twin["data"]["command"]) == words


async def test_the_command_that_enqueues_a_job_again_has_all_of_its_text(api: Api) -> None:
    arguments = {"to": "one\u2028two\x85three"}
    payload = json.dumps(arguments, ensure_ascii=False, indent=1).encode()
    await api.processor.backend.producing.enqueue([NewJob("a", "send", "mail", payload)])
    html = (await api.client.get(f"{JOBS}/a")).text
    (shown,) = re.findall("<pre[^>]*>(nimburion enqueue .*)</pre>", html)
    assert json.loads(shlex.split(unescape(shown))[4]) == arguments


async def test_a_dead_letter_is_replayed_from_its_page(api: Api) -> None:
    await api.fail("a")
    response = await api.client.post(f"{JOBS}/a/replay", headers=OWN_PAGE, content="")
    assert response.headers["Location"] == f"{JOBS}/a?notice=jobs.id.replay"
    assert (await api.processor.backend.reads.get_job("a")).state is State.PENDING


def test_repeated_errors_are_one_group() -> None:
    errors = [
        AttemptError(number, "failure", "E", f"of {number}", fingerprint=mark)
        for number, mark in ((1, "a"), (2, "a"), (3, "b"), (4, "a"))
    ]
    found = [
        (group.first_attempt, group.last_attempt, group.count)
        for group in group_errors(errors, with_tracebacks=False)
    ]
    assert found == [(4, 4, 1), (3, 3, 1), (1, 2, 2)]


APPLICATION_FRAME = '  File "/srv/app/tasks.py", line 7, in send\n    call()\n'
LIBRARY_FRAMES = (
    '  File "/usr/lib/python3.11/smtplib.py", line 9, in connect\n    x\n    ^\n'
    '  File "/srv/.venv/lib/python3.11/site-packages/a/b.py", line 1, in c\n    x'
)


def test_frames_of_libraries_are_parts_of_their_own() -> None:
    head, end = "Traceback (most recent call last):\n", "  and more\nError: no\n  answer"
    traceback = f"{head}{APPLICATION_FRAME}{LIBRARY_FRAMES}\n{APPLICATION_FRAME}{end}\n"
    parts = split_traceback(traceback)
    assert parts == [
        TracebackPart(f"{head}{APPLICATION_FRAME}".rstrip(), 0),
        TracebackPart(LIBRARY_FRAMES, 2),
        TracebackPart(f"{APPLICATION_FRAME}{end}", 0),
    ]
    assert "\n".join(part.text for part in parts) == traceback.rstrip()


@pytest.mark.parametrize(
    ("traceback", "count"),
    [
        ('  File "' * 100_000, 1),
        (f"Traceback:\n{LIBRARY_FRAMES}\nError: no", 1),  # without the application: not folded
        ('  | Traceback:\n  |   File "/srv/app/a.py", line 1, in f\n  |     x\nError', 1),
    ],
)
def test_a_traceback_without_both_kinds_of_frames_is_one_part(traceback: str, count: int) -> None:
    parts = split_traceback(traceback)
    assert [part.library_frames for part in parts] == [0] * count
    assert "".join(part.text for part in parts) == traceback


async def test_the_page_of_a_job_has_its_data_and_tracebacks(api: Api) -> None:
    await api.fail("a")
    html = (await api.client.get(f"{JOBS}/a")).text
    assert "{&#34;to&#34;:&#34;a&#34;,&#34;secret&#34;:&#34;hush&#34;}" in html
    assert "Traceback\n  hush" in html
    assert '<details class="error" open>' in html
    twin = (await api.client.get(f"{JOBS}/a?format=json")).json()
    assert twin["data"]["contents"]["payload"] == {"to": "a", "secret": "hush"}
    assert twin["shape"] is None


async def test_without_the_right_a_job_shows_the_shape_of_its_data(guarded: Api) -> None:
    address = f"{JOBS}/a"
    html = (await guarded.client.get(address, headers=sign_in("read"))).text
    assert "to: text, secret: text" in html
    assert "hush" not in html
    assert "Broken" in html
    twin = await guarded.client.get(f"{address}?format=json", headers=sign_in("read"))
    assert twin.json()["data"] is None
    assert twin.json()["errors"][0]["traceback"] == []


async def test_the_list_of_jobs_shows_arguments_tenant_and_tags(api: Api) -> None:
    options = JobOptions(tenant="acme inc", tags=("media",))
    payload = b'{"to":"<a>", "n": 7}'
    await api.processor.backend.producing.enqueue(
        [NewJob("a", "send", "mail", payload, options=options)]
    )
    html = (await api.client.get(JOBS)).text
    assert "to: &#34;&lt;a&gt;&#34;, n: 7" in html
    for qualifier in ("tenant%3A%22acme%20inc%22", "tag%3Amedia"):
        assert f'href="{JOBS}?q={qualifier}"' in html


async def test_the_list_of_jobs_reads_only_the_beginning_of_arguments(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = api.services.backend.reads
    list_jobs, pages = reads.list_jobs, []

    async def note_page(*arguments: Any, **options: Any) -> Page:
        pages.append(await list_jobs(*arguments, **options))
        return pages[-1]

    monkeypatch.setattr(reads, "list_jobs", note_page)
    payload = b'{"text": "%s"}' % (b"x" * 10_000)
    await api.services.backend.producing.enqueue([NewJob("long", "send", "mail", payload)])
    html = (await api.client.get(f"{DASHBOARD_PATH}/jobs")).text
    assert re.search(r"<small>{ text: &#34;x{50,}", html)
    assert {len(job.payload or b"") for job in pages[-1].jobs if job.id == "long"} == {481}


async def test_the_list_of_jobs_has_no_arguments_without_the_right(api: Api, guarded: Api) -> None:
    await api.enqueue("b")
    assert "hush" in (await api.client.get(f"{JOBS}?format=json")).text
    shown = await guarded.client.get(f"{JOBS}?format=json", headers=sign_in("read"))
    assert 'arguments":""' in shown.text
    assert "hush" not in shown.text


async def test_a_group_of_errors_shows_the_traceback_of_its_newest_job(
    api: Api, guarded: Api
) -> None:
    path = f"{DASHBOARD_PATH}/dead-letters/none"
    await api.fail("a")
    assert "Traceback\n  hush" in (await api.client.get(path)).text
    seen = (await guarded.client.get(path, headers=sign_in("read"))).text
    assert 'id="job-a"' in seen
    assert "hush" not in seen
