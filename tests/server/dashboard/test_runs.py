"""The timeline of a durable run on the page of its job: the picture, the table, the reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec import Raw

from nimburion import DurableContext, job
from nimburion.core.job import State
from nimburion.core.runs import NewSignal
from nimburion.jobs.durable.timeline import EntryKind, EntryState, TimelineEntry
from nimburion.server.api.runs import RunView
from nimburion.server.dashboard.readings import SharedReadings
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from nimburion.server.dashboard.run_picture import (
    CUT_WIDTH,
    FUTURE_WIDTH,
    LABEL_WIDTH,
    PLOT_WIDTH,
    draw_run,
    lay_out_time,
)
from nimburion.testing import FakeClock
from tests.server.conftest import Api
from tests.server.dashboard.conftest import OWN_PAGE, sign_in
from tests.server.onboarding import confirmed, create_account, start

JOBS = f"{DASHBOARD_PATH}/jobs"
HOUR = 3_600.0


async def read(api: Api, job_id: str, headers: dict[str, str] | None = None) -> Any:
    """Return the page of a job and its JSON twin."""
    html = await api.client.get(f"{JOBS}/{job_id}", headers=headers)
    data = await api.client.get(f"{JOBS}/{job_id}?format=json", headers=headers)
    return html.text, data.json()


def make_entry(
    key: str,
    started_at: float | None,
    ended_at: float | None = None,
    kind: EntryKind = EntryKind.STEP,
    state: EntryState = EntryState.DONE,
    **fields: Any,
) -> TimelineEntry:
    return TimelineEntry(
        kind=kind,
        key=key,
        state=state,
        started_at=started_at,
        ended_at=ended_at,
        **fields,
    )


def make_run(entries: list[TimelineEntry], now: float = 1_000.0) -> RunView:
    return RunView(
        id="r",
        state=State.SUSPENDED,
        now=now,
        why="",
        steps=len(entries),
        complete=True,
        unreadable=0,
        cancelling=False,
        entries=entries,
        waits=[],
        signals=[],
    )


def draw(entries: list[TimelineEntry], now: float = 1_000.0) -> str:
    run = make_run(entries, now)
    return str(draw_run(run, run.entries, "/dashboard"))


async def test_the_timeline_of_a_run_that_waits(api: Api) -> None:
    await start(api)
    html, data = await read(api, "r")
    section = html.partition('id="timeline"')[2].partition("</section>")[0]
    assert section.count('<svg class="box ') == 2
    assert re.findall(r'<tspan class="name">(\w+)</tspan>', section) == [
        "create_account",
        "confirmed",
    ]
    assert "{&#34;email&#34;:&#34;ann@example.com&#34;}" in section
    assert re.search(r">(6 d 23 h|7 d) left</text>", section)
    assert [one["state"] for one in data["run"]["entries"]] == ["done", "waiting"]
    assert "A wait ends none." in html


async def test_the_end_of_a_run_is_shown_at_once(api: Api) -> None:
    clock = FakeClock()
    api.services.readings = SharedReadings(api.services.backend, clock)
    await start(api)
    _, before = await read(api, "r")
    await api.processor.signal("r", confirmed, "ann")
    await api.processor.drain()
    clock.advance(1.5)  # the job is read again, and what the waiting run had stored counts longer
    _, after = await read(api, "r")
    states = [[one["state"] for one in data["run"]["entries"]] for data in (before, after)]
    assert states == [["done", "waiting"], ["done", "done"]]


async def test_a_signal_is_sent_by_a_form(api: Api) -> None:
    await start(api)
    html, _ = await read(api, "r")
    assert 'action="/dashboard/jobs/r/signals"' in html
    form = {"name": "confirmed", "payload": '"ann"', "id": "s1", "reason": "on the phone"}
    sent = [
        await api.client.post(f"{JOBS}/r/signals", data=form, headers=OWN_PAGE) for _ in range(2)
    ]
    assert [one.status_code for one in sent] == [303, 303]
    await api.processor.drain()
    job_status = await api.processor.get_status("r")
    assert job_status.result == "ann@example.com ann"
    api.services.readings.expire()
    html, _ = await read(api, "r")
    assert 'action="/dashboard/jobs/r/signals"' not in html


async def test_unread_signals_are_listed(api: Api) -> None:
    await start(api)
    await api.services.backend.producing.send_signals([NewSignal("r", "other", "1", b'"x"')])
    html, _ = await read(api, "r")
    assert "Unread signals" in html
    assert ">other</th>" in html


async def test_values_need_the_right_payloads(guarded: Api) -> None:
    await start(guarded)
    await guarded.services.backend.producing.send_signals(
        [NewSignal("r", "other", "1", b'"hush-hush"')]
    )
    html, data = await read(guarded, "r", sign_in("read"))
    section = html.partition('id="timeline"')[2].partition("</section>")[0]
    assert "create_account" in section
    assert "ann@example.com" not in section
    assert "hush-hush" not in section
    assert "27 B" in section
    assert [one["value"] for one in data["run"]["entries"]] == [None, None]
    assert "ann@example.com" not in str(data["run"])


async def test_a_plain_job_has_no_timeline_and_one_that_did_not_start_no_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = api.services.backend.reads
    asked: list[str] = []
    read_run = reads.read_run

    async def count(job_id: str, **options: Any) -> Any:
        asked.append(job_id)
        return await read_run(job_id, **options)

    monkeypatch.setattr(type(reads), "read_run", staticmethod(count))
    await api.enqueue("waits", queue="mail")
    html, data = await read(api, "waits")
    assert ('id="timeline"' in html, data["run"], asked) == (False, None, [])
    await api.fail("dead")
    for _ in range(3):
        html, data = await read(api, "dead")
        assert ('id="timeline"' in html, data["run"]) == (False, None)
    assert asked == ["dead"]


async def test_the_page_shows_the_latest_of_many_operations(api: Api) -> None:
    @job
    async def count(ctx: DurableContext) -> None:
        for number in range(130):
            await ctx.options(key=f"s{number}").step(create_account, "a")

    api.processor.register(count)
    await api.processor.enqueue(count.job(), id="many")
    await api.processor.drain()
    html, data = await read(api, "many")
    assert "the latest 100 of 130 entries" in html
    assert html.count('<svg class="box ') == 100
    assert ">s129<" in html
    assert ">s29<" not in html
    assert len(data["run"]["entries"]) == 130


def test_long_waits_are_cut_and_have_their_length_in_words() -> None:
    entries = [
        make_entry("a", 0.0, 10.0),
        make_entry("nap", 10.0, 10.0 + 72 * HOUR, EntryKind.SLEEP),
        make_entry("b", 10.0 + 72 * HOUR, 20.0 + 72 * HOUR),
    ]
    spans = lay_out_time(entries, 20.0 + 72 * HOUR, 0.0, 500.0)
    assert [span.is_cut for span in spans] == [False, True, False]
    work = (500.0 - CUT_WIDTH) / 2
    assert [span.width for span in spans] == pytest.approx([work, CUT_WIDTH, work])
    assert ">3 d</text>" in draw(entries, 20.0 + 72 * HOUR)


def test_short_waits_keep_their_scale() -> None:
    entries = [
        make_entry("a", 0.0, 10.0),
        make_entry("nap", 10.0, 15.0, EntryKind.SLEEP),
        make_entry("b", 15.0, 20.0),
    ]
    spans = lay_out_time(entries, 20.0, 0.0, 400.0)
    assert [span.width for span in spans] == pytest.approx([200.0, 100.0, 100.0])


@pytest.mark.parametrize("waits", [1, 9, 99])
def test_no_bar_is_outside_of_the_picture(waits: int) -> None:
    entries = []
    for number in range(waits):
        at = number * 2 * HOUR
        entries += [
            make_entry(f"s{number}", at, at + 1.0),
            make_entry(f"w{number}", at + 1.0, at + HOUR, EntryKind.WAIT),
        ]
    drawn = draw(entries, waits * 2 * HOUR)
    bars = re.findall(r'class="span [\w ]+" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
    assert len(bars) == 2 * waits
    for x, width in bars:
        assert LABEL_WIDTH - 3.1 <= float(x) <= float(x) + float(width)
        assert float(x) + float(width) <= LABEL_WIDTH + PLOT_WIDTH + 0.1


def test_a_wait_with_a_deadline_goes_beyond_now() -> None:
    waiting = make_entry("paid", 10.0, None, EntryKind.WAIT, EntryState.WAITING, until=1_060.0)
    drawn = draw([make_entry("a", 0.0, 10.0), waiting])
    now = LABEL_WIDTH + PLOT_WIDTH - FUTURE_WIDTH
    assert f'<line class="edge on-finished" x1="{now}" x2="{now}"' in drawn
    assert f'<path class="edge on-failure" d="M{now:.1f} ' in drawn
    assert ">1 min left</text>" in drawn


def test_only_waits_and_only_unknown_times() -> None:
    waiting = make_entry("paid", 10.0, None, EntryKind.WAIT, EntryState.WAITING)
    assert draw([waiting]).count("<g>") == 1
    assert draw([]) == ""
    assert draw([make_entry("first", None, 10.0)]).count("<g>") == 1
    never = make_entry("never", None, None, state=EntryState.FAILED)
    assert draw([never]) == ""


def test_keys_and_errors_are_escaped() -> None:
    hostile = make_entry("<script>", 0.0, 1.0, error="\x1b[2J</title>", value=Raw(b"1"))
    drawn = draw([hostile])
    assert "<script>" not in drawn
    assert "\x1b" not in drawn
    assert drawn.count("</title>") == 1


def test_child_jobs_are_a_link_to_their_flow() -> None:
    children = make_entry("parts", 0.0, 5.0, EntryKind.CHILDREN, flow="r.parts", jobs=3, tries=0)
    assert '<a href="/dashboard/flows/r.parts"><title>children parts, done, 5 s, 3 jobs' in draw(
        [children]
    )
