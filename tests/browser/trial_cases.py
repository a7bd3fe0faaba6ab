"""What an operator asks first, answered from the pages alone."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.limits import LimitRule
from nimburion.core.session import Session, WorkerCommand
from nimburion.testing.contract.harness import make_limits
from tests.browser.action_cases import fail, make_name, wait_for_state
from tests.browser.conftest import Subject

pytestmark = pytest.mark.asyncio(loop_scope="session")


MAX_CLICKS = 3
COUNT_CLICKS = """addEventListener("click", event => {
    if (event.isTrusted) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true)"""


async def open_overview(subject: Subject, page: Page) -> None:
    """Open the first page, and count the clicks from here."""
    await page.add_init_script(COUNT_CLICKS)
    await page.goto(subject.dashboard.address)


async def check_clicks(page: Page) -> None:
    """Check that a task took at least one click, and not too many."""
    assert 1 <= await page.evaluate("Number(sessionStorage.clicks ?? 0)") <= MAX_CLICKS


async def read_why(subject: Subject, page: Page, job_id: str) -> str:
    """Find a job by its id, as somebody does who was given the id, and return what its page says
    first.
    """
    await page.goto(subject.dashboard.address)
    await page.keyboard.press("/")
    await page.keyboard.type(job_id)
    await page.keyboard.press("Enter")
    return await page.locator(".why").inner_text()


async def open_worker(subject: Subject, name: str, queue: str, limit: int | None = None) -> Session:
    """Open the session of a worker that knows one name and serves one queue."""
    limits = {} if limit is None else {name: limit}
    session = Session(
        id=name.ljust(32, "0"),
        ttl=600.0,
        queues=(queue,),
        names=(name,),
        limits=make_limits(limits),
    )
    await subject.backend.consuming.open_session(session)
    return session


async def test_the_page_of_a_job_says_why_it_does_not_run(subject: Subject, page: Page) -> None:
    backend = subject.backend
    paused, unknown, full, later, absent, behind = (make_name() for _ in range(6))
    for name in (paused, later, behind):
        await open_worker(subject, name, name)
    worker = await open_worker(subject, full, full, limit=1)
    await open_worker(subject, absent, f"{absent}-other")
    await backend.producing.enqueue(
        [
            NewJob(f"{paused}-1", paused, paused, b"{}"),
            NewJob(f"{unknown}-1", unknown, unknown, b"{}"),
            NewJob(f"{full}-0", full, full, b"{}"),
            NewJob(f"{full}-1", full, full, b"{}"),
            NewJob(f"{later}-1", later, later, b"{}", after=3_600.0),
            NewJob(f"{absent}-1", absent, absent, b"{}"),
            NewJob(f"{behind}-0", behind, behind, b"{}", priority=9),
            NewJob(f"{behind}-1", behind, behind, b"{}", priority=1),
        ]
    )
    await backend.maintenance.pause_queue(
        paused, paused=True, by="ops", reason="a deploy", until=None
    )
    await backend.consuming.exchange(
        worker.id, 1, [], ReserveRequest(total=1, lanes=(Lane(full, full),))
    )
    expected = {
        paused: ["paused", "ops", "a deploy"],
        unknown: ["no live worker"],
        full: ["limit", "1 of 1"],
        later: ["due"],
        absent: [absent, "queue"],
        behind: ["jobs before it run first"],
    }
    for name, words in expected.items():
        why = await read_why(subject, page, f"{name}-1")  # without a click
        assert [word for word in words if word not in why.lower()] == [], why


async def test_the_error_that_grew_is_found_and_replayed_at_a_rate(
    subject: Subject, page: Page
) -> None:
    queue = make_name()
    ids = await fail(subject, queue, 12)
    await open_overview(subject, page)
    await page.get_by_role("link", name="Most in the last hour").click()
    row = page.locator("tr", has_text=f"no {queue}")
    await row.get_by_role("link", name="Replay…").click()
    await page.get_by_label("Jobs per second").fill("10")
    await page.get_by_role("button", name="Replay 12 jobs").click()
    await expect(page.locator("#notice, #live")).not_to_have_count(0)
    await check_clicks(page)
    for job_id in (ids[0], ids[-1]):
        await wait_for_state(subject, job_id, State.PENDING)
    await page.goto(f"{subject.dashboard.address}/operations")
    await expect(page.locator("#live")).to_contain_text("done")


async def test_a_pause_for_an_hour_and_who_did_it(subject: Subject, page: Page) -> None:
    queue = make_name()
    await subject.backend.producing.enqueue([NewJob(f"{queue}-1", "send", queue, b"{}")])
    await page.goto(f"{subject.dashboard.address}/queues/{queue}")
    await page.locator("summary", has_text="Pause").click()
    await page.get_by_role("textbox", name="Reason").fill("the CRM is down")
    await expect(page.get_by_label("For")).to_have_value("3600")
    await page.get_by_role("button", name=f"Pause {queue}").click()
    await expect(page.locator("#notice")).to_contain_text("is paused")
    await page.get_by_role("link", name="Audit").click()
    row = page.locator("tr", has_text=queue)
    await expect(row).to_contain_text("queue.pause")
    await expect(row).to_contain_text("the CRM is down")
    await expect(row).to_contain_text("dashboard")


async def test_the_flood_of_a_customer_is_limited_from_its_queue(
    subject: Subject, page: Page
) -> None:
    backend, name = subject.backend, make_name()
    limit, customer = f"{name}:customer", "mega corp"
    worker = Session(
        id=name.ljust(32, "0"),
        ttl=600.0,
        queues=(name,),
        names=(name,),
        limits={name: {limit: LimitRule(concurrency=2)}},
    )
    await backend.consuming.open_session(worker)
    options = JobOptions(limit_keys={limit: customer})
    jobs = [NewJob(f"{name}-{n}", name, name, b"{}", options=options) for n in range(8)]
    await backend.producing.enqueue(jobs)
    for number in range(1, 5):
        request = ReserveRequest(total=4, lanes=(Lane(name, name),))
        await backend.consuming.exchange(worker.id, number, [], request)
    await open_overview(subject, page)
    await page.locator("nav").get_by_role("link", name="Queues").click()
    row = page.locator(f"#queue-{name}")
    await row.get_by_role("link", name=f"6 wait for key {customer}").click()
    await expect(page.get_by_role("combobox", name="Key")).to_have_value(customer)
    await page.get_by_role("spinbutton", name="Maximum").fill("1")
    await page.get_by_role("textbox", name="Reason").fill("a flood")
    await page.get_by_role("button", name=f"Change {limit}").click()
    await expect(page.locator("#notice")).to_contain_text("is changed")
    await check_clicks(page)
    await page.goto(f"{subject.dashboard.address}/queues/{name}")
    causes = page.locator("#causes")
    await expect(causes).to_contain_text(f"of 6 wait for key {customer}")
    await expect(causes.get_by_role("link", name="Change…")).to_be_visible()


async def test_the_worker_of_a_stuck_job_is_stopped_from_the_running_jobs(
    subject: Subject, page: Page
) -> None:
    backend, name = subject.backend, make_name()
    worker = await open_worker(subject, name, name)
    jobs = [NewJob(f"{name}-{number}", name, name, b"{}") for number in range(2)]
    await backend.producing.enqueue(jobs)
    request = ReserveRequest(total=2, lanes=(Lane(name, name),))
    await backend.consuming.exchange(worker.id, 1, [], request)
    await open_overview(subject, page)
    await page.locator("nav").get_by_role("link", name="Running").click()
    row = page.locator(f"#job-{name}-0")
    await row.locator("summary", has_text="Stop worker").click()
    await expect(row).to_contain_text("runs 1 other of these jobs")
    await row.get_by_role("button", name="Stop this worker").click()
    await expect(page.locator("#notice")).to_contain_text("The worker stops")
    await check_clicks(page)
    sessions = {one.id: one.command for one in await backend.reads.list_sessions()}
    assert sessions[worker.id] is WorkerCommand.STOP


async def test_all_queues_are_paused_before_a_deploy(subject: Subject, page: Page) -> None:
    backend, reason = subject.backend, "deploy 17"
    await open_overview(subject, page)
    await page.locator("summary", has_text="Pause all").click()
    await page.get_by_role("textbox", name="Reason").fill(reason)
    await page.get_by_role("button", name="Pause all queues").click()
    await expect(page.locator("#notice")).to_contain_text("paused")
    await check_clicks(page)
    running = page.locator(".tile", has=page.get_by_text("Running", exact=True))
    await expect(running).to_be_visible()  # the deploy waits until it is 0
    queues = await backend.reads.list_queues()
    assert all(queue.paused for queue in queues)
    for queue in queues:  # the others of this module need them
        if queue.pause is not None and queue.pause.reason == reason:
            await backend.maintenance.pause_queue(queue.name, paused=False)
