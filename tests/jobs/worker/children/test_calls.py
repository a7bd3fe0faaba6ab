"""Jobs that run in child processes: results, context, errors, logs and enqueueing."""

from __future__ import annotations

import logging
import os
from typing import Any

import msgspec
import pytest

from nimburion import Flow
from nimburion.core.job import State
from nimburion.jobs import Context, JobId, Processor
from tests.jobs.worker.children import application as app
from tests.jobs.worker.children.conftest import Make
from tests.waiting import DEADLINE, wait_until, wait_until_finished


async def test_both_kinds_of_handlers_run_in_a_child_and_return(make: Make) -> None:
    processor = make()
    await processor.start()
    ids = [
        await processor.enqueue(app.add.job(2, 3)),
        await processor.enqueue(app.add_async.job(2, 4)),
        await processor.enqueue(app.get_process.job()),
    ]
    five, six, process = [await processor.wait(job_id, DEADLINE) for job_id in ids]
    assert (five, six) == (5, 6)
    assert process != os.getpid()


async def test_a_child_gets_the_results_of_members_of_a_flow(make: Make) -> None:
    processor = make()
    await processor.start()
    flow = Flow("sum")
    first = flow.add(app.add.job(2, 3))
    second = flow.add(app.add_async.job(first.result, 4), name="second")
    flow.add(app.get_process.job(), depends_on=second)
    await processor.enqueue_flow(flow, id="f")
    assert await processor.wait("f.second", DEADLINE) == 9
    assert (await processor.flows.wait("f", DEADLINE)).completed == 3


async def test_the_context_of_a_child_has_the_facts_of_the_job(make: Make) -> None:
    processor = make()
    await processor.start()
    job_id = await processor.enqueue(
        app.describe.job(),
        priority=7,
        tenant="acme",
        correlation_id="c1",
        headers={"h": "1"},
        timeout=50,
    )
    facts: dict[str, Any] = await processor.wait(str(job_id), DEADLINE)
    assert 45 < facts.pop("remaining") <= 50
    assert facts.pop("process") == facts.pop("group"), "a group of its own"
    assert facts == {
        "id": job_id,
        "name": "describe",
        "queue": "default",
        "attempt": 1,
        "fence": 1,
        "tenant": "acme",
        "correlation_id": "c1",
        "headers": {"h": "1"},
        "priority": 7,
    }
    assert (await processor.get_status(job_id)).state is State.COMPLETED


@pytest.mark.parametrize("job", [app.fail, app.fail_async])
async def test_what_a_handler_raises_means_the_same_as_elsewhere(make: Make, job: object) -> None:
    processor = make(max_retries=0)
    await processor.start()
    ids = {
        how: await processor.enqueue(job.job(how))  # type: ignore[attr-defined]
        for how in ("error", "permanent", "cancel", "exit", "interrupt", "generator")
    }
    records = {how: await wait_until_finished(processor, job_id) for how, job_id in ids.items()}
    assert records.pop("cancel").state is State.CANCELLED
    assert {how: (r.state, r.reason, r.history[-1].type) for how, r in records.items()} == {
        "error": (State.FAILED, "exhausted", "Odd"),
        "permanent": (State.FAILED, "permanent", "PermanentError"),
        "exit": (State.FAILED, "exhausted", "SystemExit"),
        "interrupt": (State.FAILED, "exhausted", "KeyboardInterrupt"),
        "generator": (State.FAILED, "exhausted", "GeneratorExit"),
    }
    error = records["error"].history[-1]
    assert error.message == "of the child"
    assert "application.py" in error.traceback, "the traceback of the child"
    assert error.session, "the place of the attempt is known"


async def test_a_snooze_and_a_retry_keep_their_delays(make: Make) -> None:
    processor = make()
    await processor.start()
    snoozed = await processor.enqueue(app.fail.job("snooze"))
    retried = await processor.enqueue(app.fail.job("retry"))

    async def both_wait() -> bool:
        states = [(await processor.get_status(each)).state for each in (snoozed, retried)]
        return states == [State.SCHEDULED, State.RETRYING]

    await wait_until(both_wait, "both jobs wait")
    record = await processor.backend.reads.get_job(retried)
    assert record.due - record.created_at > 3500


async def test_middleware_sees_the_json_of_the_result_and_a_remote_error(make: Make) -> None:
    seen: list[object] = []

    async def watch(ctx: Context, call_next: object) -> object:
        try:
            result = await call_next(ctx)  # type: ignore[operator]
        except Exception as error:
            seen.append((type(error).__name__, getattr(error, "type", "")))
            raise
        seen.append(result)
        return result

    processor = make(max_retries=0)
    processor.use(watch)
    await processor.start()
    await processor.wait(await processor.enqueue(app.add.job(1, 1)), DEADLINE)
    await wait_until_finished(processor, await processor.enqueue(app.fail.job("error")))
    assert seen == [msgspec.Raw(b"2"), ("RemoteError", "Odd")]


async def test_middleware_may_replace_the_payload(make: Make) -> None:
    async def replace(ctx: Context, call_next: object) -> object:
        ctx.payload = b'{"a":20,"b":3}'
        return await call_next(ctx)  # type: ignore[operator]

    processor = make()
    processor.use(replace)
    await processor.start()
    assert await processor.wait(await processor.enqueue(app.add.job(1, 1)), DEADLINE) == 23


async def test_a_payload_that_does_not_fit_is_unreadable(make: Make) -> None:
    processor = make()
    await processor.start()
    job_id = await processor.enqueue_raw("add", {"a": "text", "b": 1})
    record = await wait_until_finished(processor, job_id)
    assert (record.state, record.reason) == (State.FAILED, "unreadable")


async def test_progress_and_a_set_result_are_kept(make: Make) -> None:
    processor = make()
    await processor.start()
    job_id = JobId[str](await processor.enqueue(app.report.job(1000)))
    assert await processor.wait(job_id, DEADLINE) == "set"
    progress = (await processor.backend.reads.get_job(job_id)).progress
    assert progress is not None
    assert (progress.fraction, progress.message) == (1.0, "end")


async def test_jobs_are_enqueued_through_the_worker(make: Make) -> None:
    processor = make()
    await processor.start()
    job_id = await processor.enqueue(app.enqueue_more.job(), tenant="acme")
    ids = await processor.wait(job_id, DEADLINE)
    results = [await processor.wait(each, DEADLINE) for each in ids]
    assert (ids[1], results) == ("own", [3, 7, 11, 15])
    record = await processor.backend.reads.get_job(ids[0])
    assert record.options.tenant == "acme", "inherited from the job that enqueued"
    assert processor._statistics.jobs.list_lanes(), "counted in the parent"


async def test_a_def_handler_enqueues_with_sync(make: Make) -> None:
    processor = make()
    await processor.start()
    first = await processor.wait(await processor.enqueue(app.enqueue_blocking.job()), DEADLINE)
    assert await processor.wait(first, DEADLINE) == 3


@pytest.mark.parametrize("what", ["status", "transaction"])
async def test_what_a_child_cannot_do_raises_an_error_that_says_so(make: Make, what: str) -> None:
    processor = make(max_retries=0)
    await processor.start()
    job_id = await processor.enqueue(app.read_backend.job(what))
    record = await wait_until_finished(processor, job_id)
    assert record.history[-1].type == "NotSupported"
    assert "child process" in record.history[-1].message


async def test_logs_and_output_become_records_of_the_job(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    processor = make()
    await processor.start()
    logged = await processor.enqueue(app.log.job())
    written = await processor.enqueue(app.write.job("one\ntwo ☃\nno end"))
    for job_id in (logged, written):
        await processor.wait(job_id, DEADLINE)

    def read(logger: str) -> list[tuple[str, str | None]]:
        return [
            (r.getMessage(), getattr(r, "job_id", None)) for r in caplog.records if r.name == logger
        ]

    assert read("nimburion.job") == [("record 0", logged)]
    assert read("app") == [("plain text", logged)]
    lines = ["one", "two ☃", "from C", "no end"]
    assert sorted(read("nimburion.job.output")) == sorted((line, written) for line in lines)
    record = next(r for r in caplog.records if r.name == "nimburion.job")
    assert (record.levelname, record.__dict__["number"]) == ("WARNING", 0)
    assert (record.filename, record.funcName) == ("application.py", "log")


async def test_hooks_run_in_the_child(make: Make) -> None:
    processor = make()
    await processor.start()
    assert await processor.wait(
        await processor.enqueue(_find("read_hooks", processor)), DEADLINE
    ) == ["before"]
    assert app.hooked == []


def _find(name: str, processor: Processor) -> Any:
    handler = processor.registry.get(name)
    assert handler is not None
    return handler.target.job()  # type: ignore[union-attr]
