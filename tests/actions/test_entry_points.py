"""Each action does the same from Python, the command line, the JSON API and the dashboard."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from nimburion import config
from nimburion.actions import Operator
from nimburion.core.audit import AuditRecord, list_audit
from nimburion.core.bulk_operations import (
    BulkAction,
    NewBulkOperation,
    list_bulk_operations,
    start_bulk_operation,
)
from nimburion.core.errors import MissingRight
from nimburion.core.job import FAILED_ONLY, UNFINISHED, JobOptions
from nimburion.core.limits import LimitChange
from nimburion.core.queries import JobFilter
from nimburion.core.schedules import list_schedules
from nimburion.core.session import Session
from nimburion.jobs import Processor, Unique
from nimburion.jobs.client.client import make_actions
from nimburion.testing.contract.harness import make_limits
from tests.cli.conftest import CommandLine, nimburion  # noqa: F401 (a fixture)
from tests.server.conftest import Api

SOURCE = Path(__file__).parents[2] / "src/nimburion"

Call = Callable[[Processor], Awaitable[object]]
Form = dict[str, str]


class Case(NamedTuple):
    """One action as each entry point calls it."""

    action: str
    python: Call
    command: tuple[str, ...] | None
    path: str
    """Of the API, after POST; `DELETE /…` for another method."""
    body: dict[str, object] | None = None
    form: tuple[str, Form] | None = None
    """The path below `/dashboard` and the fields; None: the dashboard has no such form."""
    sync: Callable[[Processor], object] | None = None


OTHER = JobFilter(states=FAILED_ONLY, queue="other")
CASES = {
    "pause": Case(
        "queue.pause",
        lambda p: p.queues.pause("mail", reason="deploy", seconds=60),
        ("queues", "pause", "mail", "--reason", "deploy", "--for", "60s"),
        "/queues/mail/pause",
        {"reason": "deploy", "for": 60},
        ("/queues/mail/pause", {"reason": "deploy", "for": "60"}),
        lambda p: p.sync.queues.pause("mail", reason="deploy", seconds=60),
    ),
    "resume": Case(
        "queue.resume",
        lambda p: p.queues.resume("paused"),
        ("queues", "resume", "paused"),
        "/queues/paused/resume",
        None,
        ("/queues/paused/resume", {}),
        lambda p: p.sync.queues.resume("paused"),
    ),
    "pause all": Case(
        "queue.pause_all",
        lambda p: p.queues.pause_all(reason="deploy"),
        None,
        "/queues/pause",
        {"reason": "deploy"},
        ("/queues/pause", {"reason": "deploy"}),
        lambda p: p.sync.queues.pause_all(reason="deploy"),
    ),
    "resume all": Case(
        "queue.resume_all",
        lambda p: p.queues.resume_all(),
        None,
        "/queues/resume",
        None,
        ("/queues/resume", {}),
        lambda p: p.sync.queues.resume_all(),
    ),
    "cancel": Case(
        "jobs.cancel",
        lambda p: make_actions(p, p.operator).jobs.cancel(JobFilter(ids=("a",))),
        ("jobs", "cancel", "a"),
        "/jobs/a/cancel",
        None,
        ("/jobs/a/cancel", {}),
    ),
    "cancel a queue": Case(
        "jobs.cancel",
        lambda p: make_actions(p, p.operator).jobs.cancel(
            JobFilter(states=UNFINISHED, queue="mail")
        ),
        ("jobs", "cancel", "--queue", "mail", "--yes"),
        "/jobs/cancel",
        {"queue": "mail"},
    ),
    "run now": Case(
        "jobs.run_now",
        lambda p: make_actions(p, p.operator).jobs.run_now("later"),
        ("jobs", "run-now", "later"),
        "/jobs/later/run-now",
        None,
        ("/jobs/later/run-now", {}),
    ),
    "signal": Case(
        "jobs.signal",
        lambda p: make_actions(p, p.operator).jobs.signal("a", "paid", b"7", signal_id="s1"),
        ("jobs", "signal", "a", "paid", "7", "--id", "s1"),
        "/jobs/a/signals",
        {"name": "paid", "payload": 7, "id": "s1"},
        ("/jobs/a/signals", {"name": "paid", "payload": "7", "id": "s1"}),
    ),
    "replay": Case(
        "dead.replay",
        lambda p: p.dead.replay("dead"),
        ("dead", "replay", "dead"),
        "/dead-letters/replay",
        {"ids": ["dead"]},
        ("/jobs/dead/replay", {}),
        lambda p: p.sync.dead.replay("dead"),
    ),
    "replay all": Case(
        "dead.replay",
        lambda p: p.dead.replay_all(),
        ("dead", "replay", "--all", "--yes"),
        "/dead-letters/replay",
        {"all": True},
        None,
        lambda p: p.sync.dead.replay_all(),
    ),
    "purge": Case(
        "dead.purge",
        lambda p: p.dead.purge("dead"),
        ("dead", "purge", "dead", "--yes"),
        "/dead-letters/purge",
        {"ids": ["dead"]},
        ("/jobs/dead/purge", {}),
        lambda p: p.sync.dead.purge("dead"),
    ),
    "replay edited": Case(
        "dead.replay_edited",
        lambda p: p.dead.replay_edited("dead", b'{"to":"b"}'),
        None,
        "/dead-letters/dead/replay-edited",
        {"payload": {"to": "b"}},
        ("/jobs/dead/arguments/replay", {"payload": '{"to":"b"}'}),
    ),
    "change a limit": Case(
        "limit.change",
        lambda p: p.limits.change("job:send", 3, rate="10/min", reason="sale"),
        ("limits", "set", "job:send", "3", "--rate", "10/min", "--reason", "sale"),
        "/limits/job:send/change",
        {"concurrency": 3, "rate": "10/min", "reason": "sale"},
        ("/limits/job:send/change", {"concurrency": "3", "rate": "10/min", "reason": "sale"}),
        lambda p: p.sync.limits.change("job:send", 3, rate="10/min", reason="sale"),
    ),
    "reset a limit": Case(
        "limit.reset",
        lambda p: p.limits.reset("job:send", reason="over"),
        ("limits", "reset", "job:send", "--reason", "over"),
        "/limits/job:send/reset",
        {"reason": "over"},
        ("/limits/job:send/reset", {"reason": "over"}),
        lambda p: p.sync.limits.reset("job:send", reason="over"),
    ),
    "weight": Case(
        "tenant.weight",
        lambda p: p.tenants.set_weight("acme", 2.0),
        ("tenants", "weight", "acme", "2"),
        "/tenants/weight",
        {"tenant": "acme", "weight": 2},
        None,
        lambda p: p.sync.tenants.set_weight("acme", 2.0),
    ),
    "stop a worker": Case(
        "worker.stop",
        lambda p: p.workers.stop("worker-1", reason="stuck"),
        ("workers", "stop", "worker-1", "--reason", "stuck"),
        "/workers/worker-1/command",
        {"command": "stop", "reason": "stuck"},
        ("/workers/worker-1/stop", {"reason": "stuck"}),
        lambda p: p.sync.workers.stop("worker-1", reason="stuck"),
    ),
    "start a bulk operation": Case(
        "operations.start_replay",
        lambda p: p.bulk.start(
            "replay", states=["failed"], queue="other", rate="10/s", limit=5, why="fixed"
        ),
        (
            *("dead", "replay", "--queue", "other", "--in-background", "--rate", "10/s"),
            *("--limit", "5", "--why", "fixed", "--yes"),
        ),
        "/operations/replay",
        {"queue": "other", "state": ["failed"], "rate": 10, "limit": 5, "why": "fixed"},
        (
            "/operations/replay",
            {"queue": "other", "state": "failed", "rate": "10", "limit": "5", "why": "fixed"},
        ),
        lambda p: p.sync.bulk.start("replay", OTHER, rate=10.0, limit=5, why="fixed"),
    ),
    "cancel a bulk operation": Case(
        "operations.cancel",
        lambda p: p.bulk.cancel("op"),
        ("operations", "cancel", "op"),
        "/operations/op/cancel",
        None,
        ("/operations/op/cancel", {}),
        lambda p: p.sync.bulk.cancel("op"),
    ),
    "pause a schedule": Case(
        "schedule.pause",
        lambda p: p.schedules.pause("daily"),
        ("schedules", "pause", "daily"),
        "/schedules/daily/pause",
        None,
        ("/schedules/daily/pause", {}),
        lambda p: p.sync.schedules.pause("daily"),
    ),
    "resume a schedule": Case(
        "schedule.resume",
        lambda p: p.schedules.resume("daily"),
        ("schedules", "resume", "daily"),
        "/schedules/daily/resume",
        None,
        ("/schedules/daily/resume", {}),
        lambda p: p.sync.schedules.resume("daily"),
    ),
    "remove a schedule": Case(
        "schedule.remove",
        lambda p: p.schedules.remove("daily"),
        ("schedules", "remove", "daily"),
        "DELETE /schedules/daily",
        None,
        None,
        lambda p: p.sync.schedules.remove("daily"),
    ),
}
TOKENS = {"ann": "ann-0123456789abcdef", "reader": "reader-0123456789abcdef"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backend with something for each action."""
    path = tmp_path_factory.mktemp("prepared") / "nimburion.db"

    async def prepare() -> None:
        async with make_server(path) as api:
            backend = api.processor.backend
            await api.fail("dead", queue="other")
            await api.enqueue("a", "b", queue="mail")
            await api.enqueue("later", after=3600.0)
            await backend.maintenance.pause_queue("paused", paused=True)
            await backend.maintenance.change_limit(LimitChange(name="job:send", concurrency=9))
            await backend.consuming.open_session(
                Session(
                    id="worker-1",
                    queues=("mail",),
                    names=("send",),
                    limits=make_limits({"send": 5}),
                )
            )
            await start_bulk_operation(backend, NewBulkOperation(id="op", action=BulkAction.DELETE))
            await api.processor.schedules.add("daily", "@daily", "send")

    asyncio.run(prepare())
    return path


class Server:
    """A management server with two tokens on a file, as a context manager."""

    def __init__(self, path: Path) -> None:
        rights = {"ann": ["read", "payloads", "operate", "admin"], "reader": ["read"]}
        tokens = [
            {"name": name, "rights": rights[name], "variable": f"TOKEN_{name}"} for name in TOKENS
        ]
        self._api = Api(config.load(server={"tokens": tokens}, jobs={"url": f"sqlite:///{path}"}))

    async def __aenter__(self) -> Api:
        await self._api.processor.open()
        return self._api

    async def __aexit__(self, *_: object) -> None:
        await self._api.client.aclose()
        await self._api.processor.close()


make_server = Server


@pytest.fixture(scope="module", autouse=True)
def set_tokens() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, token in TOKENS.items():
            patch.setenv(f"TOKEN_{name}", token)
        yield


class Seen(NamedTuple):
    """What an action left behind."""

    effect: object
    record: AuditRecord


async def read_effect(api: Api) -> object:
    """Return what the backend holds, without times and names of operators."""
    backend = api.processor.backend
    return (
        sorted((job.id, job.state, job.queue) for job in (await backend.reads.list_jobs()).jobs),
        [(one.name, one.payload) for one in (await backend.reads.read_run("a")).signals],
        sorted(
            (one.name, one.paused, one.pause and (one.pause.reason, one.pause.until is None))
            for one in await backend.reads.list_queues()
        ),
        [
            (one.name, one.concurrency, one.rate)
            for limit in await backend.reads.list_limits()
            for one in limit.changes
        ],
        [(one.id, one.command) for one in await backend.reads.list_sessions()],
        (await backend.reads.list_tenants(10)).weights,
        [(one.name, one.paused) for one in await list_schedules(backend)],
        sorted(
            (one.action, one.state, one.which.queue, one.rate or 0, one.limit or 0)
            for one in (await list_bulk_operations(backend)).operations
        ),
    )


async def read_seen(api: Api) -> Seen:
    record = (await list_audit(api.processor.backend)).records[0]
    return Seen(await read_effect(api), record)


async def send(api: Api, case: Case, name: str) -> int:
    """Send the request of a case; return the status."""
    method, _, path = case.path.rpartition(" ")
    headers = {"Authorization": f"Bearer {TOKENS[name]}"}
    response = await api.client.request(
        method or "POST", f"/api/v1{path}", json=case.body, headers=headers
    )
    return response.status_code


async def send_form(api: Api, form: tuple[str, Form], name: str) -> int:
    """Send the form of a case as its page does; return the status."""
    response = await api.client.post(
        f"/dashboard{form[0]}",
        data=form[1],
        headers={
            "Authorization": f"Bearer {TOKENS[name]}",
            "Sec-Fetch-Site": "same-origin",
            "HX-Request": "true",
            "Content-Type": "application/x-www-form-urlencoded",
        },
    )
    return response.status_code


def change_copy(prepared: Path, path: Path, change: Callable[[Api], Awaitable[object]]) -> Seen:
    """Copy the prepared backend, change it, and return what can be seen afterwards."""
    copy_backend(prepared, path)

    async def run() -> Seen:
        async with make_server(path) as api:
            await change(api)
            return await read_seen(api)

    return asyncio.run(run())


def copy_backend(prepared: Path, path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        source = prepared.with_name(prepared.name + suffix)
        if source.exists():
            shutil.copy(source, path.with_name(path.name + suffix))


def normalize(record: AuditRecord) -> tuple[object, ...]:
    """Return what must be the same from all entry points."""
    target = "" if record.action.startswith("operations.start") else record.target
    return record.action, target, record.details, record.changed, record.outcome, record.error


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_action_is_the_same_from_everywhere(
    case: Case,
    prepared: Path,
    tmp_path: Path,
    nimburion: CommandLine,  # noqa: F811
) -> None:
    seen: dict[str, Seen] = {}

    async def in_python(api: Api) -> None:
        api.processor.operator = Operator("ann")
        await case.python(api.processor)

    async def over_api(api: Api) -> None:
        assert await send(api, case, "ann") in {200, 201}

    async def on_page(api: Api) -> None:
        assert case.form
        assert await send_form(api, case.form, "ann") == 200

    seen["python"] = change_copy(prepared, tmp_path / "python.db", in_python)
    seen["api"] = change_copy(prepared, tmp_path / "api.db", over_api)
    if case.form is not None:
        seen["dashboard"] = change_copy(prepared, tmp_path / "page.db", on_page)
    if case.sync is not None:
        path = tmp_path / "sync.db"
        copy_backend(prepared, path)
        processor = Processor(f"sqlite:///{path}")
        processor.operator = Operator("ann")
        case.sync(processor)
        processor.sync.close()
        seen["python (sync)"] = change_copy(path, tmp_path / "seen.db", do_nothing)
    if case.command is not None:
        copy_backend(prepared, nimburion.folder / "nimburion.db")
        ended = nimburion(*case.command)
        assert ended.code == 0, ended.err
        path = nimburion.folder / "nimburion.db"
        seen["cli"] = change_copy(path, tmp_path / "seen2.db", do_nothing)
    wanted = seen["python"]
    assert wanted.record.action == case.action
    assert wanted.record.outcome == "done"
    for entry_point, found in seen.items():
        assert found.effect == wanted.effect, entry_point
        assert normalize(found.record) == normalize(wanted.record), entry_point
        assert found.record.origin == entry_point.removesuffix(" (sync)")
        assert found.record.by == "ann" or (entry_point == "cli" and "@" in found.record.by)


async def do_nothing(_: Api) -> None:
    return


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_the_right_nothing_is_changed_or_recorded(
    case: Case, prepared: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        async with make_server(tmp_path / "jobs.db") as api:
            before = await read_seen(api)
            api.processor.operator = Operator("reader", rights=frozenset({"read"}))
            with pytest.raises(MissingRight, match="'reader' lacks the right"):
                await case.python(api.processor)
            assert await send(api, case, "reader") == 403
            if case.form is not None:
                assert await send_form(api, case.form, "reader") == 403
            assert await read_seen(api) == before

    copy_backend(prepared, tmp_path / "jobs.db")
    asyncio.run(run())


@pytest.mark.parametrize(
    ("unique", "body", "options"),
    [
        (
            Unique(for_=60, on_duplicate="existing"),
            {"for": 60, "on_duplicate": "existing"},
            ("--unique-for", "60s", "--on-duplicate", "existing"),
        ),
        (Unique(while_="waiting"), {"while": "waiting"}, ("--unique-while", "waiting")),
        (
            Unique(debounce=5, max_wait=60),
            {"debounce": 5, "max_wait": 60},
            ("--debounce", "5s", "--max-wait", "1m"),
        ),
        (Unique(throttle=60), {"throttle": 60}, ("--throttle", "1m")),
    ],
)
def test_a_unique_key_is_the_same_from_everywhere(
    unique: Unique,
    body: dict[str, object],
    options: tuple[str, ...],
    nimburion: CommandLine,  # noqa: F811
) -> None:
    path = nimburion.folder / "nimburion.db"

    async def enqueue_and_read() -> list[JobOptions]:
        async with make_server(path) as api:
            headers = {"Authorization": f"Bearer {TOKENS['ann']}"}
            sent = {"name": "send", "id": "api", "unique_key": "b", "unique": body}
            response = await api.client.post("/api/v1/jobs", json=sent, headers=headers)
            assert response.status_code == 201, response.text
            await api.processor.enqueue_raw("send", {}, id="py", unique_key="c", unique=unique)
            reads = api.processor.backend.reads
            records = [await reads.get_job(job_id) for job_id in ("cli", "api", "py")]
            assert len({record.due > record.created_at for record in records}) == 1
            return [record.options for record in records]

    call = ("enqueue", "send", "--id", "cli", "--unique-key", "a", *options)
    assert nimburion(*call).code == 0
    over_cli, over_api, in_python = asyncio.run(enqueue_and_read())
    assert over_cli == replace(in_python, unique_key="a")
    assert over_api == replace(in_python, unique_key="b")


CHANGES = (
    *("pause_queue", "cancel", "change_jobs", "change_limit", "reset_limit", "send_signals"),
    *("set_tenant_weight", "send_command", "put_record", "delete_record"),
)
"""The operations of a backend that actions call."""
OF_RECORDS = (
    *("start_bulk_operation", "cancel_bulk_operation", "put_schedule", "pause_schedule"),
    *("delete_schedule", "put_audit"),
)
"""The functions of `core` that they call to write records."""


@pytest.mark.parametrize("package", ["cli", "server", "integrations"])
def test_no_entry_point_changes_the_backend_itself(package: str) -> None:
    call = re.compile(rf"backend\.({'|'.join(CHANGES)})\(")
    imported = re.compile(r"from nimburion\.core\.\w+ import ([^(\n]+|\([^)]+\))")
    found = [
        (path.name, name)
        for path in (SOURCE / package).rglob("*.py")
        if path.name != "testing.py"  # empties the backend between the tests of an application
        for text in (path.read_text(),)
        for name in call.findall(text)
        + [one for names in imported.findall(text) for one in OF_RECORDS if one in names]
    ]
    assert found == []
