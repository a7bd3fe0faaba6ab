"""The pages of running jobs, limits, checks, changes and settings."""

from __future__ import annotations

import asyncio
import re

from msgspec.structs import replace

from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import Session
from nimburion.core.settings import SchedulerSettings, TaskSettings
from nimburion.core.settlement import Progressed
from nimburion.jobs import Context
from nimburion.server.access import LOCAL_CALLER
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.page import PageRequest
from nimburion.server.dashboard.pages.jobs.job import read_job
from nimburion.server.dashboard.readings import PageReadings, SharedReadings
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import make_limits
from tests.server.conftest import Api, MakeApi
from tests.server.dashboard.conftest import OWN_PAGE
from tests.waiting import wait_until


async def run_jobs(api: Api) -> None:
    """Let a worker hold two jobs of a name with the limit 2; one has a short timeout."""
    backend = api.processor.backend
    options = JobOptions(timeout=0.000_001)
    await backend.producing.enqueue(
        [
            NewJob("fast", "charge", "bank", b"{}", options=options),
            NewJob("slow", "charge", "bank", b"{}"),
            NewJob("next", "charge", "bank", b"{}"),
        ]
    )
    session = Session(
        id="r" * 32, host="host-9", pid=99, queues=("bank",), names=("charge",),
        limits=make_limits({"charge": 2}),
    )  # fmt: skip
    await backend.consuming.open_session(session)
    request = ReserveRequest(total=2, lanes=(Lane("bank", "charge"),))
    reply = await backend.consuming.exchange(session.id, 1, [], request)
    slow = next(one.lease for one in reply.deliveries if one.lease.job_id == "slow")
    progress = [Progressed(slow, 0.5, "<half>")]
    await backend.consuming.exchange(session.id, 2, progress, ReserveRequest(total=0))


async def test_late_jobs_are_marked(site: Api) -> None:
    await run_jobs(site)
    path = f"{DASHBOARD_PATH}/running"
    twin = (await site.client.get(path, params={"format": "json"})).json()
    rows = {row["job"]["id"]: row for row in twin["jobs"]}
    assert {job_id: row["late"] for job_id, row in rows.items()} == {
        "fast": "overdue",
        "slow": "no",
    }
    assert (rows["slow"]["pid"], rows["slow"]["deadline"]) == (99, None)
    assert rows["slow"]["beside"] == 1
    html = (await site.client.get(path)).text
    assert "50 %, &lt;half&gt;" in html
    for job_id, outcome in (("slow", "is asked to end it"), ("next", "is cancelled")):
        headers = {**OWN_PAGE, "HX-Request": "true"}
        response = await site.client.post(f"{path}/{job_id}/cancel", headers=headers)
        assert outcome in response.text
    html = (await site.client.get(path)).text
    assert "cancel requested" in html
    assert f'action="{path}/slow/cancel"' not in html


async def test_an_update_of_a_running_job_reads_only_what_may_have_changed(site: Api) -> None:
    await run_jobs(site)
    clock = FakeClock()
    shared = SharedReadings(site.processor.backend, clock)

    async def count_reads() -> int:
        before, readings = shared.count, PageReadings(shared)
        path = {"id": "slow"}
        await read_job(PageRequest(site.services, LOCAL_CALLER, path, NoQuery(), readings))
        return shared.count - before

    counts = [await count_reads()]
    for seconds in (1.0, 1.0, 3.0):
        clock.advance(seconds)
        counts.append(await count_reads())
    # What decides, its usual time, its data, its steps with its stack, and the runs of its name.
    assert counts == [5, 1, 1, 2]


async def test_a_full_limit_with_waiting_jobs_is_marked(site: Api) -> None:
    await run_jobs(site)
    path = f"{DASHBOARD_PATH}/limits"
    twin = (await site.client.get(path, params={"format": "json"})).json()
    row = next(row for row in twin["limits"] if row["limit"]["name"] == "job:charge")
    assert (row["is_full"], row["waiting"], row["limit"]["in_use"]) == (True, 1, 2)
    assert sorted(holder["job_id"] for holder in row["limit"]["holders"]) == ["fast", "slow"]
    assert "full, jobs wait" in (await site.client.get(path)).text
    why = (await site.client.get(f"{DASHBOARD_PATH}/jobs/next")).text
    for holder in ("fast", "slow"):
        assert f'<a href="{DASHBOARD_PATH}/jobs/{holder}">{holder}</a>' in why


async def test_a_rate_limit_says_when_the_next_job_may_start(site: Api) -> None:
    backend = site.processor.backend
    await backend.producing.enqueue(
        [NewJob(job_id, "call", "bank", b"{}") for job_id in ("one", "two")]
    )
    rate = RateLimit("1/min", interval=60_000_000, burst=1)
    session = Session(
        id="l" * 32, queues=("bank",), names=("call",), limits=make_limits(rates={"call": rate})
    )
    await backend.consuming.open_session(session)
    request = ReserveRequest(total=2, lanes=(Lane("bank", "call"),))
    await backend.consuming.exchange(session.id, 1, [], request)
    path = f"{DASHBOARD_PATH}/limits"
    rows = (await site.client.get(path, params={"format": "json"})).json()["limits"]
    row = next(row for row in rows if row["limit"]["name"] == "job:call")
    assert (row["limit"]["room"], row["waiting"], row["is_full"]) == (0, 1, True)
    assert "full, jobs wait" in (await site.client.get(path)).text


async def test_limits_are_changed_and_reset_with_their_forms(site: Api) -> None:
    limit = LimitRule(concurrency=1, rate=RateLimit("5/s", interval=200_000, burst=1))
    session = Session(
        id="l" * 32,
        queues=("bank",),
        names=("call",),
        limits=make_limits({"call": 1}, keyed={"call": {"call:customer": limit}}),
    )
    await site.processor.backend.consuming.open_session(session)
    path, headers = f"{DASHBOARD_PATH}/limits", {**OWN_PAGE, "HX-Request": "true"}
    for target, form in (
        ("job:call", "concurrency=3&reason=<sale>"),
        ("call:customer", "concurrency=2&rate=5%2Fs&burst=&key=acme&reason=paid"),
    ):
        response = await site.client.post(f"{path}/{target}/change", content=form, headers=headers)
        assert f"The limit {target} is changed." in response.text
    twin = (await site.client.get(path, params={"format": "json"})).json()
    row = next(row for row in twin["limits"] if row["limit"]["name"] == "job:call")
    assert (row["maximum"], row["limit"]["changes"][0]["by"]) == (3, "local")
    row = next(row for row in twin["limits"] if row["limit"]["name"] == "call:customer")
    assert row["limit"]["changes"][0]["key"] == "acme"
    html = (await site.client.get(path)).text
    assert "&lt;sale&gt;" in html
    assert 'name="key" value="acme"' in html
    assert html.count(f'action="{path}/call:customer/reset"') == 1
    for target, form in (("job:call", ""), ("call:customer", "key=acme")):
        response = await site.client.post(f"{path}/{target}/reset", content=form, headers=headers)
        assert f"declare for {target} applies again" in response.text
    limits = await site.processor.backend.reads.list_limits()
    assert [limit.name for limit in limits if limit.changes] == ["job:send"]


async def test_a_limit_with_two_rates_is_changed_to_one_that_is_written(site: Api) -> None:
    rates = {
        name: {"api:host": LimitRule(rate=RateLimit(rate, interval=100_000, burst=1))}
        for name, rate in (("call", "5/s"), ("fetch", "10/s"))
    }
    session = Session(id="l" * 32, queues=("bank",), names=("call", "fetch"), limits=rates)
    await site.processor.backend.consuming.open_session(session)
    html = (await site.client.get(f"{DASHBOARD_PATH}/limits")).text
    assert ">10/s or 5/s, burst 1<" in html
    assert 'value="10/s or 5/s"' not in html
    assert "10/s or 5/s" not in re.findall('placeholder="([^"]*)"', html)


async def test_a_form_of_a_limit_sends_only_what_is_written(site: Api) -> None:
    limit = LimitRule(concurrency=7, rate=RateLimit("5/s", interval=200_000, burst=3))
    session = Session(
        id="l" * 32,
        queues=("bank",),
        names=("call",),
        limits=make_limits({"call": 4}, keyed={"call": {"call:customer": limit}}),
    )
    await site.processor.backend.consuming.open_session(session)
    html = (await site.client.get(f"{DASHBOARD_PATH}/limits")).text
    fields = re.findall('<input name="(?:concurrency|rate|burst)"[^>]*>', html)
    assert [field for field in fields if "value=" in field] == []
    assert sum('placeholder="7"' in field for field in fields) == 1


async def test_a_form_without_a_key_does_not_reset_the_key_that_is_empty(site: Api) -> None:
    backend = site.processor.backend
    limit = {"call": {"call:customer": LimitRule(concurrency=1)}}
    session = Session(id="l" * 32, queues=("bank",), names=("call",), limits=limit)
    await backend.consuming.open_session(session)
    await backend.maintenance.change_limit(LimitChange(name="call:customer", key="", concurrency=2))
    html = (await site.client.get(f"{DASHBOARD_PATH}/limits")).text
    assert "jobs without a key: 2 at once" in html
    assert f'action="{DASHBOARD_PATH}/limits/call:customer/reset"' not in html


async def test_the_page_of_a_queue_limits_it_and_shows_whose_turn_is_next(site: Api) -> None:
    await run_jobs(site)
    backend = site.processor.backend
    await backend.producing.enqueue(
        [
            NewJob(f"{tenant}{n}", "charge", "bank", b"{}", options=JobOptions(tenant=tenant))
            for tenant in ("<acme>", "bolt")
            for n in range(2)
        ]
    )
    path = f"{DASHBOARD_PATH}/queues/bank"
    form = "concurrency=3&rate=&burst=&reason=sale"
    headers = {**OWN_PAGE, "HX-Request": "true"}
    change = f"{DASHBOARD_PATH}/limits/queue:bank/change"
    response = await site.client.post(change, content=form, headers=headers)
    assert "The limit queue:bank is changed." in response.text
    twin = (await site.client.get(path, params={"format": "json"})).json()
    assert (twin["limit"]["maximum"], twin["limit"]["change"]["by"]) == (3, "local")
    assert [one["tenant"] for one in twin["turns"]["tenants"]] == ["<acme>", "bolt"]
    assert twin["turns"]["complete"]
    html = (await site.client.get(path)).text
    assert "&lt;acme&gt;</a>" in html
    assert "2 of 3" in html  # the jobs that ran before count too
    assert f'action="{change}"' in html
    assert f'action="{DASHBOARD_PATH}/limits/queue:bank/reset"' in html
    limits = (await site.client.get(f"{DASHBOARD_PATH}/limits")).text
    assert f'<a href="{DASHBOARD_PATH}/queues/bank">queue:bank</a>' in limits


async def test_the_audit_log_says_who_did_what(site: Api) -> None:
    for number in range(60):
        await site.client.post(
            f"{DASHBOARD_PATH}/queues/mail/pause",
            content=f"reason=r{number}&for=5400",
            headers=OWN_PAGE,
        )
    path = f"{DASHBOARD_PATH}/audit"
    first = (await site.client.get(path, params={"format": "json"})).json()
    rest = (await site.client.get(path, params={"format": "json", "after": first["next"]})).json()
    records = [row["record"] for row in first["records"] + rest["records"]][:60]
    reasons = [record["details"]["reason"] for record in records]
    assert reasons == [f"r{number}" for number in reversed(range(60))]
    assert {(record["by"], record["origin"]) for record in records} == {("local", "dashboard")}
    assert first["records"][0]["link"] == "/queues/mail"
    assert "for:</span> 1 h 30 min" in (await site.client.get(path)).text


async def test_the_checks_of_the_backend_say_what_to_do(site: Api) -> None:
    path = f"{DASHBOARD_PATH}/backend"
    twin = (await site.client.get(path, params={"format": "json"})).json()
    checks = {check["subject"]: check for check in twin["report"]["checks"]}
    assert checks["workers"]["verdict"] == "warning"
    html = (await site.client.get(path)).text
    assert "start a worker that registers it and serves its queue" in html


async def test_settings_are_shown_without_secrets(make_api: MakeApi) -> None:
    api: Api = await make_api("memory://")
    task = TaskSettings(name="t", cron="@daily", job_name="send", payload='{"secret": "hush"}')
    config = api.services.config
    scheduler = SchedulerSettings(tasks=(task,))
    api.services.config = replace(
        config,
        jobs=replace(config.jobs, url="redis://app:hush@host/0"),
        scheduler=scheduler,
    )
    response = await api.client.get(f"{DASHBOARD_PATH}/about")
    assert response.status_code == 200
    assert "hush" not in response.text
    twin = (await api.client.get(f"{DASHBOARD_PATH}/about", params={"format": "json"})).json()
    settings = {row["name"]: row for row in twin["settings"]}
    assert settings["jobs.url"]["value"] == "redis://app:***@host/0"
    assert settings["jobs.url"]["changed"]
    assert not settings["jobs.concurrency"]["changed"]
    assert settings["scheduler.tasks.0.cron"]["value"] == "@daily"
    assert "scheduler.tasks.0.payload" not in settings


async def test_the_stack_of_a_running_handler_is_on_its_page(api: Api) -> None:
    release = asyncio.Event()

    async def hold(_: Context, payload: bytes) -> None:
        await release.wait()  # where it waits

    api.processor.register("hold", hold)
    await api.processor.start()
    await api.processor.enqueue_raw("hold", b'{"card":"4111-1111"}', id="held")
    backend, path = api.processor.backend, f"{DASHBOARD_PATH}/jobs/held"

    async def runs() -> bool:
        return (await backend.reads.get_job("held")).state is State.PROCESSING

    await wait_until(runs, "the job runs")
    assert f'action="{path}/stack"' in (await api.client.get(path)).text
    headers = {**OWN_PAGE, "HX-Request": "true"}
    answer = await api.client.post(f"{path}/stack", headers=headers)
    assert "The worker has answered" in answer.text
    twin = (await api.client.get(f"{path}?format=json")).json()
    assert twin["stack"]["place"] == "event loop"
    assert "# where it waits" in twin["stack"]["text"]
    assert "4111" not in twin["stack"]["text"]
    assert "# where it waits" in (await api.client.get(path)).text
    release.set()
    await api.processor.stop(1.0)
    done = await api.client.post(f"{path}/stack", headers=headers)
    assert "does not run now" in done.text
    assert "# where it waits" not in (await api.client.get(path)).text
