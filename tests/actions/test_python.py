"""The actions of operators as a program calls them: `processor.queues`, `processor.sync.queues`."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from nimburion import Processor, State, job
from nimburion.actions.audit_log import AuditLog
from nimburion.actions.bulk import BulkActions
from nimburion.actions.dead_letters import DeadLetters
from nimburion.actions.filters import FilterOptions
from nimburion.actions.limits import LimitActions
from nimburion.actions.queues import QueueActions
from nimburion.actions.tenants import TenantActions
from nimburion.actions.workers import WorkerActions
from nimburion.core.errors import BulkOperationNotFound, InvalidJob, WorkerNotFound
from nimburion.core.queries import JobFilter
from nimburion.core.session import Session
from nimburion.jobs.client import sync_actions
from nimburion.jobs.client.sync_actions import SyncActions
from nimburion.scheduler.schedules import Schedules

SUBJECTS: dict[str, type] = {
    "queues": QueueActions,
    "limits": LimitActions,
    "dead": DeadLetters,
    "tenants": TenantActions,
    "workers": WorkerActions,
    "schedules": Schedules,
    "bulk": BulkActions,
    "audit": AuditLog,
}


@job(max_retries=0)
async def send(to: str) -> None:
    raise ConnectionError(to)


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with Processor("memory://") as one:
        one.register(send)
        yield one


async def test_a_queue_says_which_jobs_no_worker_takes(processor: Processor) -> None:
    await processor.enqueue(send.job("ann"))
    (queue,) = [one async for one in processor.queues.list()]
    assert (queue.size, list(queue.unserved)) == (1, ["send"])


async def test_a_queue_is_paused_in_one_line(processor: Processor) -> None:
    await processor.queues.pause("default", reason="deploy")
    (queue,) = [one async for one in processor.queues.list()]
    assert (queue.name, queue.paused) == ("default", True)
    (record,) = [one async for one in processor.audit.list()]
    assert (record.action, record.origin) == ("queue.pause", "python")


async def test_each_subject_lists_what_it_changes(processor: Processor) -> None:
    job_id = await processor.enqueue(send.job("ann"))
    await processor.drain()
    await processor.backend.consuming.open_session(
        Session(id="w", queues=("default",), names=("send",))
    )
    await processor.limits.change("job:send", 3)
    await processor.schedules.add("daily", "@daily", "send", '{"to":"ann"}')
    await processor.bulk.start("delete", id="op")

    assert [one.id async for one in processor.dead.list()] == [job_id]
    assert "w" in [one.id async for one in processor.workers.list()]
    assert "job:send" in [one.name async for one in processor.limits.list()]
    assert [one.name async for one in processor.schedules.list()] == ["daily"]
    assert [one.id async for one in processor.bulk.list()] == ["op"]
    assert (await processor.bulk.get("op")).state == "running"
    with pytest.raises(BulkOperationNotFound):
        await processor.bulk.get("unknown")


def test_the_same_lists_block_without_async(tmp_path: Path) -> None:
    with Processor(f"sqlite:///{tmp_path}/jobs.db").sync as sync:
        for name in ("b", "a"):
            sync.queues.pause(name)
            sync.schedules.add(name, "@daily", "send", queue=name)
        found = sync.queues.list()
        assert isinstance(found, Iterator)
        assert [queue.name for queue in found] == ["a", "b"]
        assert [one.name for one in sync.schedules.list()] == ["a", "b"]
        assert sync.schedules.get("a").queue == "a"
        assert [*sync.dead.list(), *sync.workers.list(), *sync.limits.list()] == []


def test_a_blocking_list_reads_several_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sync_actions, "_PAGE_SIZE", 2)
    with Processor(f"sqlite:///{tmp_path}/jobs.db").sync as sync:
        for name in "abcd":
            sync.queues.pause(name)
        assert [queue.name for queue in sync.queues.list()] == [*"abcd"]


async def test_commands_of_workers(processor: Processor) -> None:
    await processor.backend.consuming.open_session(
        Session(id="w", queues=("default",), names=("send",))
    )
    for command in ("quiet", "stop", "resume"):
        await getattr(processor.workers, command)("w")
        (worker,) = [one async for one in processor.workers.list()]
        assert worker.command == (None if command == "resume" else command)
    with pytest.raises(WorkerNotFound):
        await processor.workers.stop("unknown")


async def test_a_bulk_operation_takes_its_filter_as_keywords(processor: Processor) -> None:
    for to in "ab":
        await processor.enqueue(send.job(to), tenant=to)
    await processor.drain()
    preview = await processor.bulk.preview("replay", name="send", tenant="a")
    assert (preview.count, preview.complete) == (1, True)

    day = datetime(2026, 1, 1, tzinfo=UTC)
    started = await processor.bulk.start(
        "replay", name="send", rate="90/min", states=["failed"], ids=iter(["x"]), created_to=day
    )
    assert (started.which.name, started.rate, started.which.ids) == ("send", 1.5, ("x",))
    assert (started.which.states, started.which.created_to) == (
        frozenset({State.FAILED}),
        day.timestamp(),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "fast"}, "rate 'fast' is no rate"),
        ({"rate": "0/s"}, "rate '0/s' is no rate"),
        ({"states": "failed"}, "states: give a list"),
        ({"states": ["dead"]}, "states: each is one of pending"),
        ({"ids": "abc"}, "ids: give a list"),
        ({"created_from": 3.0}, "created_from: give a datetime with a time zone"),
        ({"finished_to": datetime(2026, 1, 1)}, "finished_to: give a datetime with a time zone"),  # noqa: DTZ001
        ({"tenant": None}, "tenant is None: leave it out"),
        ({"states": None}, "states is None: leave it out"),
        ({"created_from": None}, "created_from is None: leave it out"),
        ({"queue": 5}, "queue: give a text, not 5"),
        ({"tag": ["a"]}, r"tag: give a text, not \['a'\]"),
        ({"min_failures": "x"}, "min_failures: give a whole number, not 'x'"),
        ({"min_failures": True}, "min_failures: give a whole number, not True"),
        ({"ids": [1]}, r"ids: give a list of ids, not \[1\]"),
        ({"ids": 5}, "ids: give a list of ids, not 5"),
        ({"states": 5}, "states: give a list of states, not 5"),
        ({"tenent": "a"}, "no such field of a filter: tenent; known: states"),
    ],
)
async def test_wrong_values_of_a_bulk_operation(
    processor: Processor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        await processor.bulk.start("replay", **options)


def test_each_field_of_a_filter_can_be_given_as_a_keyword() -> None:
    assert FilterOptions.__annotations__.keys() == {*JobFilter.__struct_fields__}


async def test_an_unknown_action_of_a_bulk_operation(processor: Processor) -> None:
    with pytest.raises(InvalidJob, match="'redo' is no action of a bulk operation: 'replay'"):
        await processor.bulk.preview("redo")  # type: ignore[arg-type]


async def test_ids_that_are_missing_change_nothing(processor: Processor) -> None:
    """`purge(*ids)` of an empty list is not a purge of everything."""
    await processor.enqueue(send.job("ann"))
    await processor.drain()
    none: list[str] = []
    assert await processor.dead.purge(*none) == await processor.dead.replay(*none) == []
    assert len([one async for one in processor.dead.list()]) == 1


def list_actions(subject: type) -> dict[str, Any]:
    return {
        name: method
        for name, method in vars(subject).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


@pytest.mark.parametrize("subject", SUBJECTS)
def test_one_rule_for_what_an_action_returns(subject: str) -> None:
    """`list` is an async iterator; what takes `after` returns a page; nothing else iterates."""
    for name, method in list_actions(SUBJECTS[subject]).items():
        returned = get_type_hints(method)["return"]
        is_iterator = getattr(returned, "__origin__", None) is AsyncIterator
        assert is_iterator is (name == "list")
        if "after" in inspect.signature(method).parameters and not is_iterator:
            assert "next" in [field.name for field in msgspec.structs.fields(returned)]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_action_blocks_below_sync(subject: str) -> None:
    processor = Processor("memory://")
    assert type(getattr(processor, subject)) is SUBJECTS[subject]
    blocking = getattr(processor.sync, subject)
    assert isinstance(blocking, SyncActions)
    for name, method in list_actions(SUBJECTS[subject]).items():
        if name not in FOR_ENTRY_POINTS:
            assert inspect.signature(getattr(blocking, name)).parameters.keys() == (
                inspect.signature(method).parameters.keys() - {"self"}
            )
            assert getattr(blocking, name).__doc__ == method.__doc__


FOR_ENTRY_POINTS = {"replay_matching", "purge_matching"}
"""Actions on a `JobFilter`, for the command line and the server."""


def test_the_actions_load_nothing_until_they_are_used() -> None:
    code = (
        "import sys; from nimburion import Processor; p = Processor('memory://');"
        "print(any('.actions' in m or 'nimburion.scheduler' in m for m in sys.modules));"
        "p.schedules; p.sync.schedules; print('nimburion.scheduler.schedules' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "True"]
