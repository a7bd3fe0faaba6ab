"""The actions of the pages, done as people do them, while the pages update."""

from __future__ import annotations

import itertools
import re

import pytest
from playwright.async_api import Browser, Page, Route, expect

from nimburion.core.bulk_operations import (
    BulkAction,
    BulkState,
    NewBulkOperation,
    get_bulk_operation,
    start_bulk_operation,
)
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.flows import NewFlow, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import AttemptError, JobOptions, NewJob, State
from nimburion.core.limits import LimitRule
from nimburion.core.queries import JobFilter
from nimburion.core.session import Session, WorkerCommand
from nimburion.core.settlement import Failed
from nimburion.scheduler.schedules import Schedules
from nimburion.testing.contract.harness import make_limits
from tests.browser.conftest import Subject
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")
_numbers = itertools.count(1)


def make_name() -> str:
    """Return a name that no other test uses, for a queue and the ids of its jobs."""
    return f"own{next(_numbers)}"


async def enqueue(subject: Subject, queue: str, count: int = 1) -> list[str]:
    """Store waiting jobs in a queue of the test."""
    jobs = [NewJob(f"{queue}-{n}", "send", queue, b'{"to":"a"}') for n in range(count)]
    await subject.backend.producing.enqueue(jobs)
    return [job.id for job in jobs]


async def fail(subject: Subject, queue: str, count: int = 1) -> list[str]:
    """Store dead letters in a queue of the test, with an error of its own."""
    ids = await enqueue(subject, queue, count)
    session = Session(id=queue.ljust(32, "0"), queues=(queue,), names=("send",))
    await subject.backend.consuming.open_session(session)
    request = ReserveRequest(total=count, lanes=(Lane(queue, "send"),))
    reply = await subject.backend.consuming.exchange(session.id, 1, [], request)
    fingerprint = queue.encode().hex().ljust(16, "0")[:16]
    error = AttemptError(1, "failure", "Broken", f"no {queue}", fingerprint=fingerprint)
    settled = [Failed(one.lease, "exhausted", error) for one in reply.deliveries]
    await subject.backend.consuming.exchange(session.id, 2, settled, ReserveRequest(total=0))
    await subject.backend.consuming.close_session(session.id)
    return ids


async def wait_for_state(subject: Subject, job_id: str, state: State) -> None:
    """Wait until a job is in a state."""

    async def is_reached() -> bool:
        return (await subject.backend.reads.get_job(job_id)).state is state

    await wait_until(is_reached, f"{job_id} is {state}")


async def test_pause_a_queue_with_keys_only(subject: Subject, page: Page) -> None:
    queue = make_name()
    await enqueue(subject, queue)
    await page.goto(f"{subject.dashboard.address}/queues/{queue}")
    await page.locator("summary", has_text="Pause").focus()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.type("a deploy")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_contain_text(f"Queue {queue} is paused")
    await expect(page.locator("body")).to_contain_text("a deploy")
    pause = next(
        one for one in await subject.backend.reads.list_queues() if one.name == queue
    ).pause
    assert pause is not None
    assert pause.reason == "a deploy"
    assert pause.until is not None
    resume = page.get_by_role("button", name="Resume", exact=True)
    await resume.focus()
    await page.keyboard.press("Space")
    await expect(page.locator("#notice")).to_contain_text(f"Queue {queue} is resumed")


async def list_changes(subject: Subject, name: str) -> list[tuple[str | None, int | None]]:
    """Return key and maximum of the changes of limits with this name in theirs."""
    limits = [one for one in await subject.backend.reads.list_limits() if name in one.name]
    return [(change.key, change.concurrency) for limit in limits for change in limit.changes]


async def test_change_and_reset_limits(subject: Subject, page: Page) -> None:
    name = make_name()
    session = Session(
        id=name.ljust(32, "0"),
        ttl=600.0,
        names=(name,),
        limits=make_limits({name: 2}, keyed={name: {f"{name}:customer": LimitRule(concurrency=1)}}),
    )
    await subject.backend.consuming.open_session(session)
    await page.goto(f"{subject.dashboard.address}/limits")
    row = page.locator(f'[id="limit-job:{name}"]')
    keyed = page.locator(f'[id="limit-{name}:customer"]')
    notice = page.locator("#notice")
    await row.locator("summary", has_text="Change").click()
    await row.get_by_label("Maximum").fill("5")
    await row.get_by_label("Reason").fill("a sale")
    await row.get_by_role("button", name=f"Change job:{name}").click()
    await expect(notice).to_contain_text(f"The limit job:{name} is changed")
    await expect(row).to_contain_text("a sale")
    await expect(row).to_contain_text("0 of 5")
    await keyed.locator("summary", has_text="Change").click()
    await keyed.get_by_label("Key").fill("acme")
    await keyed.get_by_label("Maximum").fill("3")
    await keyed.get_by_label("Reason").fill("paid for more")
    await keyed.get_by_role("button", name=f"Change {name}:customer").click()
    await expect(keyed).to_contain_text("paid for more")
    assert set(await list_changes(subject, name)) == {("acme", 3), (None, 5)}
    await row.get_by_role("button", name="Reset", exact=True).click()
    await keyed.get_by_role("button", name="Reset acme").click()
    await expect(notice).to_contain_text(f"declare for {name}:customer applies again")
    await expect(row).to_contain_text("0 of 2")
    assert await list_changes(subject, name) == []


async def test_an_open_form_survives_live_updates(subject: Subject, page: Page) -> None:
    queue = make_name()
    await enqueue(subject, queue)
    await page.goto(f"{subject.dashboard.address}/queues/{queue}")
    form = page.locator("details.action", has_text="Pause")
    await form.locator("summary").click()
    await form.locator("[name=reason]").fill("half a rea")
    await subject.backend.producing.enqueue([NewJob(f"{queue}-more", "send", queue, b"{}")])
    await expect(page.locator("body.held")).to_have_count(1)
    await expect(form.locator("[name=reason]")).to_have_value("half a rea")
    await expect(form.locator("[name=reason]")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("body.held")).to_have_count(0)


async def test_cancel_selected_jobs_while_others_arrive(subject: Subject, page: Page) -> None:
    queue = make_name()
    first, second, third = await enqueue(subject, queue, 3)
    await page.goto(f"{subject.dashboard.address}/jobs?q=queue:{queue}")
    await page.locator(f"#job-{first} .select").check()
    await page.locator(f"#job-{third} .select").check()
    await subject.backend.producing.enqueue([NewJob(f"{queue}-more", "send", queue, b"{}")])
    await expect(page.locator("body.held")).to_have_count(1)
    await expect(page.locator(".select:checked")).to_have_count(2)
    await page.get_by_role("button", name="Cancel 2").click()
    await expect(page.locator("#notice")).to_contain_text("2 cancelled")
    await expect(page.locator(f"#job-{queue}-more")).to_be_visible()
    for job_id, state in ((first, State.CANCELLED), (second, State.PENDING)):
        await wait_for_state(subject, job_id, state)


async def test_replay_and_delete_dead_letters_of_a_group(
    subject: Subject, page: Page, expected_problems: list[str]
) -> None:
    queue = make_name()
    first, second, third = await fail(subject, queue, 3)
    await page.goto(f"{subject.dashboard.address}/dead-letters")
    await page.locator("tr", has_text=f"no {queue}").get_by_role("link").first.click()
    await page.locator(f"#job-{first}").get_by_role("button", name="Replay").click()
    await expect(page.locator("#notice")).to_contain_text("1 replayed")
    await wait_for_state(subject, first, State.PENDING)
    await page.locator(f"#job-{second} .select").check()
    await page.get_by_role("button", name="Replay selected").click()
    await wait_for_state(subject, second, State.PENDING)
    await expect(page.locator(f"#job-{second}")).to_have_count(0)
    await page.locator(f"#job-{third} .select").check()
    expected_problems.append("dialog: Delete selected the selected jobs for good")
    await page.get_by_role("button", name="Delete selected").click()
    await expect(page.locator(f"#job-{third}")).to_have_count(0)


async def fail_flow(subject: Subject, name: str) -> None:
    """Store a flow of two jobs, one after the other, of which the first fails."""
    source = WaitCondition(WaitSource(SourceKind.JOB, f"{name}.first"))
    jobs = [
        NewJob(f"{name}.first", "send", name, b'{"to":"a"}', options=JobOptions(flow=name)),
        NewJob(
            f"{name}.second",
            "send",
            name,
            b'{"to":"b"}',
            options=JobOptions(flow=name, conditions=(source,)),
        ),
    ]
    flow = NewFlow(id=name, name="pair", members=2)
    await subject.backend.producing.enqueue(jobs, [flow])
    session = Session(id=name.ljust(32, "0"), queues=(name,), names=("send",))
    await subject.backend.consuming.open_session(session)
    request = ReserveRequest(total=1, lanes=(Lane(name, "send"),))
    reply = await subject.backend.consuming.exchange(session.id, 1, [], request)
    error = AttemptError(1, "failure", "Broken", "no room")
    settled = [Failed(one.lease, "exhausted", error) for one in reply.deliveries]
    await subject.backend.consuming.exchange(session.id, 2, settled, ReserveRequest(total=0))
    await subject.backend.consuming.close_session(session.id)


async def test_replay_the_failed_part_of_a_flow(subject: Subject, page: Page) -> None:
    name = make_name()
    await fail_flow(subject, name)
    await page.goto(f"{subject.dashboard.address}/flows?state=failed")
    await page.locator(f"#flow-{name}").get_by_role("link", name=name).click()
    picture = page.get_by_role("region", name="Picture of the graph")
    await expect(picture.get_by_role("link", name="first (job, send): 1 failed")).to_be_visible()
    await page.get_by_role("link", name="Replay the failed part").click()
    await expect(page.locator("#live")).to_contain_text("1 job will run again")
    await expect(page.locator("#live")).to_contain_text("1 job will wait again")
    await page.get_by_label("Reason").fill("there is room again")
    await page.get_by_role("button", name="Replay 1 job").click()
    await expect(page.locator("#notice")).to_contain_text("1 job replayed")
    await wait_for_state(subject, f"{name}.first", State.PENDING)
    await wait_for_state(subject, f"{name}.second", State.SUSPENDED)
    await page.goto(f"{subject.dashboard.address}/flows/{name}")
    await expect(page.locator("#live")).to_contain_text("which is pending")
    await page.locator("summary", has_text="Cancel").click()
    await page.get_by_role("button", name="Cancel this flow").click()
    await expect(page.locator("#notice")).to_contain_text("cancelled")
    await wait_for_state(subject, f"{name}.second", State.CANCELLED)
    await expect(page.locator("#live .head .state").first).to_have_text("cancelled")


async def test_quiet_resume_and_stop_a_worker(subject: Subject, page: Page) -> None:
    name = make_name()
    worker = Session(id=name.ljust(32, "0"), host=name, queues=(name,), names=("send",))
    await subject.backend.consuming.open_session(worker)

    async def read_command() -> WorkerCommand | None:
        return (await subject.backend.consuming.heartbeat(worker.id)).command

    await page.goto(f"{subject.dashboard.address}/workers")
    row = page.locator(f"#worker-{worker.id}")
    await row.get_by_role("button", name="Quiet").click()
    await expect(row).to_contain_text("quiet")
    assert await read_command() is WorkerCommand.QUIET
    await row.get_by_role("button", name="Resume").click()
    await expect(row.get_by_role("button", name="Quiet")).to_be_visible()
    assert await read_command() is None
    await row.locator("summary", has_text="Stop").click()
    await row.get_by_role("button", name="Stop this worker").click()
    await expect(row).to_contain_text("stopping")
    assert await read_command() is WorkerCommand.STOP
    await subject.backend.consuming.close_session(worker.id)


async def test_run_pause_and_resume_a_schedule(subject: Subject, page: Page) -> None:
    name = make_name()
    await Schedules(subject.processor).add(name, "@yearly", "send", queue=name)
    await page.goto(f"{subject.dashboard.address}/schedules")
    row = page.locator(f"#schedule-{name}")
    await row.get_by_role("button", name="Run now").click()
    await expect(page.locator("#notice")).to_contain_text("is enqueued")
    (job,) = (await subject.backend.reads.list_jobs(JobFilter(queue=name))).jobs
    await expect(page.locator("#notice")).to_contain_text(job.id)
    await row.locator("summary", has_text="Pause").click()
    await row.locator("[name=reason]").fill("a holiday")
    await row.get_by_role("button", name=f"Pause {name}").click()
    await expect(row).to_contain_text("a holiday")
    await row.get_by_role("button", name="Resume").click()
    await expect(row).not_to_contain_text("a holiday")
    await expect(row.locator("summary", has_text="Pause")).to_be_visible()


async def test_cancel_an_operation(subject: Subject, page: Page) -> None:
    queue = make_name()
    await fail(subject, queue, 3)
    which = JobFilter(queue=queue)
    slow = NewBulkOperation(id=queue, action=BulkAction.REPLAY, which=which, rate=0.001)
    await start_bulk_operation(subject.backend, slow)
    await page.goto(f"{subject.dashboard.address}/operations")
    row = page.locator(f"#operation-{queue}")
    await row.locator("summary").click()
    await row.get_by_role("button", name="Cancel the operation").click()
    await expect(page.locator("#notice")).to_contain_text("is cancelled")
    await expect(row).to_contain_text("cancelled")
    found = await get_bulk_operation(subject.backend, queue)
    assert found.state is BulkState.CANCELLED


async def test_replay_with_other_arguments(subject: Subject, page: Page) -> None:
    queue = make_name()
    (dead,) = await fail(subject, queue)
    await page.goto(f"{subject.dashboard.address}/jobs/{dead}/arguments")
    await page.locator("[name=payload]").fill('{"to": "b"}')
    await page.get_by_role("button", name="Check only").click()
    await expect(page.locator("#notice")).to_contain_text("Nothing was changed")
    await expect(page.locator("[name=payload]")).to_have_value('{"to": "b"}')
    await page.get_by_role("button", name="Replay").click()
    await expect(page.locator("#notice")).to_contain_text("is enqueued")
    jobs = (await subject.backend.reads.list_jobs(JobFilter(queue=queue))).jobs
    assert {job.state for job in jobs} == {State.FAILED, State.PENDING}
    (added,) = (job for job in jobs if job.id != dead)
    assert (await subject.backend.reads.get_job(added.id)).payload == b'{"to": "b"}'


async def test_a_form_whose_page_came_before_its_values_keeps_what_is_written(
    subject: Subject, page: Page, expected_problems: list[str]
) -> None:
    """Its script asks for the values once, and again only if there was no answer."""
    expected_problems.append("console: Failed to load resource")
    (dead,) = await fail(subject, make_name())
    url = f"{subject.dashboard.address}/jobs/{dead}/arguments"
    answers = iter([503, 200])
    asked: list[str] = []

    async def leave_out_values(route: Route) -> None:
        answer = await route.fetch()
        html = re.sub(
            r'(<div id="live"[^>]*)>.*?<p class="data-links',
            rf'\1 data-pending="yes" data-live="{url}?format=fragment"></div><p class="data-links',
            await answer.text(),
            flags=re.DOTALL,
        )
        await route.fulfill(response=answer, body=html)

    async def fail_once(route: Route) -> None:
        asked.append(route.request.url)
        if next(answers, 200) == 200:
            await route.continue_()
        else:
            await route.fulfill(status=503)

    await page.route(url, leave_out_values)
    await page.route(f"{url}?format=fragment", fail_once)
    await page.goto(url)
    await expect(page.get_by_role("alert")).to_contain_text("is not available")
    await page.locator("[name=payload]").fill('{"to": "b"}')
    await expect(page.get_by_role("alert")).to_be_hidden()
    await page.get_by_role("button", name="Check only").click()
    await expect(page.locator("#notice")).to_contain_text("Nothing was changed")
    await page.keyboard.press("r")
    await page.evaluate(
        "async () => { await fetch(location.href) }"
    )  # after what the key asked for
    await expect(page.locator("[name=payload]")).to_have_value('{"to": "b"}')
    assert len(asked) == 2


async def test_a_check_without_scripts_keeps_the_arguments(
    subject: Subject, browser: Browser
) -> None:
    (dead,) = await fail(subject, make_name())
    context = await browser.new_context(java_script_enabled=False)
    try:
        page = await context.new_page()
        await page.goto(f"{subject.dashboard.address}/jobs/{dead}/arguments")
        await page.locator("[name=payload]").fill('{"to": "b"}')
        await page.get_by_role("button", name="Check only").click()
        await expect(page.locator("#notice")).to_contain_text("Nothing was changed")
        await expect(page.locator("[name=payload]")).to_have_value('{"to": "b"}')
    finally:
        await context.close()


async def test_pause_and_resume_all_queues(subject: Subject, page: Page) -> None:
    queue = make_name()
    await enqueue(subject, queue)
    await page.goto(subject.dashboard.address)
    await page.locator("summary", has_text="Pause all").click()
    form = page.locator("details.action[open]")
    await form.locator("[name=reason]").fill("an incident")
    await form.get_by_role("button", name="Pause all queues").click()
    await expect(page.locator("#notice")).to_contain_text("paused")
    paused = {
        one.name: one.pause for one in await subject.backend.reads.list_queues() if one.paused
    }
    pause = paused[queue]
    assert pause is not None
    assert pause.reason == "an incident"
    await page.locator("summary", has_text="Resume all").click()
    await page.get_by_role("button", name="Resume all queues").click()
    await expect(page.locator("#notice")).to_contain_text("resumed")
    assert not any(one.paused for one in await subject.backend.reads.list_queues())
