"""A queue says why its due jobs wait, and leads to what changes it."""

from __future__ import annotations

from typing import Any

from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.session import Session, Vitals
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api

LIMIT = "export:customer"


async def flood(api: Api, queue: str = "exports") -> None:
    """Let 20 jobs of one customer and 2 of another wait for their keys; one of each runs."""
    backend = api.processor.backend
    rules = {"export": {LIMIT: LimitRule(concurrency=1)}}
    worker = Session(id=queue.ljust(32, "0"), queues=(queue,), names=("export",), limits=rules)
    await backend.consuming.open_session(worker)
    await backend.consuming.heartbeat(worker.id, Vitals(slots=2, busy=2))
    jobs = [
        NewJob(f"{queue}-{key}-{number}", "export", queue, b"{}", options=options)
        for key, count in (("mega corp", 21), ("small", 3))
        for options in (JobOptions(limit_keys={LIMIT: key}),)
        for number in range(count)
    ]
    await backend.producing.enqueue(jobs)
    for number in range(1, 9):
        request = ReserveRequest(total=5, lanes=(Lane(queue, "export"),))
        await backend.consuming.exchange(worker.id, number, [], request)


async def read_causes(api: Api, queue: str = "exports") -> list[dict[str, Any]]:
    """Return the causes on the page of a queue."""
    twin = (await api.client.get(f"{DASHBOARD_PATH}/queues/{queue}?format=json")).json()
    causes: list[dict[str, Any]] = twin["causes"]
    return causes


async def test_a_queue_names_the_keys_that_its_jobs_wait_for(site: Api) -> None:
    await flood(site)
    first, second = await read_causes(site)
    assert (first["kind"], first["limit"], first["key"]) == ("key", LIMIT, "mega corp")
    assert (first["waiting"], first["in_use"], first["maximum"]) == (20, 1, 1)
    assert first["since"] is not None
    assert (second["key"], second["waiting"]) == ("small", 2)
    html = (await site.client.get(f"{DASHBOARD_PATH}/queues/exports")).text
    assert "20 of 22 wait for key" in html
    target = f"{DASHBOARD_PATH}/limits?limit=export%3Acustomer&amp;key=mega%20corp"
    assert f'href="{target}"' in html
    form = (await site.client.get(target.replace("&amp;", "&"))).text
    assert '<details class="action" open>' in form
    assert 'placeholder="all keys" value="mega corp"' in form
    assert '<option value="small">' in form


async def test_a_change_of_one_key_counts(site: Api) -> None:
    await flood(site)
    change = LimitChange(name=LIMIT, key="mega corp", concurrency=0, by="ops", reason="flood")
    await site.processor.backend.maintenance.change_limit(change)
    (cause,) = [one for one in await read_causes(site) if one["key"] == "mega corp"]
    assert cause["maximum"] == 0


async def test_jobs_of_other_queues_may_be_among_them(site: Api) -> None:
    await flood(site)
    await flood(site, "other")
    site.services.readings.expire()
    causes = await read_causes(site)
    assert causes[0]["shared"]
    html = (await site.client.get(f"{DASHBOARD_PATH}/queues/exports")).text
    assert "jobs, of other queues too, wait for key" in html


async def test_full_limits_and_busy_workers_are_named(site: Api) -> None:
    backend = site.processor.backend
    worker = Session(id="b" * 32, queues=("bank",), names=("charge", "pay"))
    await backend.consuming.open_session(worker)
    await backend.consuming.heartbeat(worker.id, Vitals(slots=1, busy=1))
    await backend.maintenance.change_limit(LimitChange(name="job:charge", concurrency=1))
    await backend.producing.enqueue(
        [NewJob(f"charge-{number}", "charge", "bank", b"{}") for number in range(4)]
        + [NewJob("pay-1", "pay", "bank", b"{}")]
    )
    request = ReserveRequest(total=1, lanes=(Lane("bank", "charge"),))
    await backend.consuming.exchange(worker.id, 1, [], request)
    causes = await read_causes(site, "bank")
    assert [(one["kind"], one["limit"], one["waiting"]) for one in causes] == [
        ("limit", "job:charge", 3),
        ("slots", None, 1),
    ]
    html = (await site.client.get(f"{DASHBOARD_PATH}/queues/bank")).text
    assert "1 of 4 wait for a slot: all 1 of the workers are busy" in html


async def test_the_lists_of_queues_say_why_jobs_wait(site: Api) -> None:
    await flood(site)
    await flood(site, "other")
    await site.processor.backend.producing.enqueue([NewJob("one", "send", "mail", b"{}")])
    await site.processor.backend.maintenance.pause_queue("other", paused=True)
    for path in ("/queues", ""):
        twin = (await site.client.get(f"{DASHBOARD_PATH}{path}?format=json")).json()
        causes = {row["name"]: row["cause"] for row in twin["queues"]}
        exports = causes["exports"]
        assert (exports["kind"], exports["key"], exports["waiting"]) == ("key", "mega corp", 20)
        assert causes["mail"] is None
        html = (await site.client.get(f"{DASHBOARD_PATH}{path}")).text
        assert "20 jobs, of other queues too, wait for key mega corp of export:customer" in html
        assert html.count("/limits?limit=export%3Acustomer&amp;key=mega%20corp") == 1


async def test_limits_are_read_for_a_list_only_while_jobs_wait(site: Api) -> None:
    backend, readings = site.processor.backend, site.services.readings
    for queue in await backend.reads.list_queues():
        await backend.maintenance.pause_queue(queue.name, paused=True)
    await site.client.get(f"{DASHBOARD_PATH}/queues")
    assert "limits" not in readings.durations
    await backend.producing.enqueue([NewJob("one", "send", "post", b"{}")])
    readings.expire()
    await site.client.get(f"{DASHBOARD_PATH}/queues")
    assert "limits" in readings.durations


async def test_an_idle_queue_has_no_causes(site: Api) -> None:
    assert await read_causes(site, "empty") == []


async def test_a_limit_that_nobody_declares_can_be_made(site: Api) -> None:
    html = (await site.client.get(f"{DASHBOARD_PATH}/limits?limit=job:fresh")).text
    assert f'action="{DASHBOARD_PATH}/limits/job:fresh/change"' in html
    for field in ("concurrency", "rate", "reason"):
        assert f'name="{field}"' in html
