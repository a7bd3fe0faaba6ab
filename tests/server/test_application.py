"""`server.bootstrap`: order of start and stop, the three ways to run, and signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from nimburion import config, server
from nimburion.backends.memory import MemoryBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.errors import ConfigurationError, DefinitionError
from nimburion.core.job import JobRecord, State
from nimburion.core.paging import iterate_jobs
from nimburion.core.settings import Config, ServerSettings
from nimburion.jobs import Processor, job
from nimburion.jobs.worker.worker import Worker
from nimburion.scheduler import Scheduler
from nimburion.server.application import Application
from nimburion.server.management import ManagementServer
from nimburion.server.routes import ExtraRoute
from tests.waiting import DEADLINE, block_until, wait_until_finished


@job
def double(number: int) -> int:
    """A job of the tests."""
    return 2 * number


def make_config(**sections: dict[str, object]) -> Config:
    """Return a configuration whose server listens on a free port."""
    chosen: dict[str, object] = {"jobs": {"url": "memory://"}, "server": {"port": 0}, **sections}
    return config.load(None, **chosen)


def make_app(cfg: Config | None = None) -> tuple[Application, Processor]:
    """Return an application with a processor."""
    processor = Processor("memory://")
    processor.register(double)
    app = server.bootstrap(cfg or make_config())
    app.set_job_processor(processor)
    return app, processor


async def find_status(app: Application, path: str) -> int:
    """Return the status of a GET over a real connection."""
    assert app.url
    async with httpx.AsyncClient(base_url=app.url) as client:
        return (await client.get(path)).status_code


async def test_worker_and_server_run_while_the_block_runs() -> None:
    app, processor = make_app()
    async with app:
        assert await find_status(app, "/health/ready") == 200
        assert await find_status(app, "/health/startup") == 200
        job_id = await processor.enqueue(double.job(21))
        assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED
        url = app.url
    assert app.url is None
    assert processor.health().state == "stopped"
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/health/live")


async def test_a_request_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = make_app()
    caplog.set_level("INFO")
    async with app:
        caplog.clear()
        for path in ("/metrics", "/health/live", "/api/v1/queues", "/api/v1/jobs/none", "/none"):
            await find_status(app, path)
        assert [record for record in caplog.records if record.name != "httpx"] == []


async def test_an_application_can_be_run_again() -> None:
    app, processor = make_app()
    for _ in range(2):
        async with app:
            job_id = await processor.enqueue(double.job(1))
            assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED


async def test_the_parts_start_and_stop_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    app, processor = make_app()
    backend = processor.backend

    def record(kind: type, name: str, word: str) -> None:
        original = getattr(kind, name)

        async def recorded(self: object, *args: Any, **options: Any) -> Any:
            if not isinstance(self, MemoryBackend) or self is backend:  # the heartbeat has its own
                seen.append(word)
            return await original(self, *args, **options)

        monkeypatch.setattr(kind, name, recorded)

    app.set_scheduler(Scheduler(processor, in_workers=False))
    record(MemoryBackend, "open", "open backend")
    record(ManagementServer, "start", "start server")
    record(Worker, "start", "start worker")
    record(Scheduler, "start", "start scheduler")
    record(Scheduler, "stop", "stop scheduler")
    record(Worker, "stop", "stop worker")
    record(ManagementServer, "stop", "stop server")
    record(MemoryBackend, "close", "close backend")
    async with app:
        pass
    assert list(dict.fromkeys(seen)) == [
        *("open backend", "start server", "start worker", "start scheduler"),
        *("stop scheduler", "stop worker", "stop server", "close backend"),
    ]


async def test_a_web_application_runs_it_as_its_lifespan() -> None:
    app, processor = make_app()
    web = Starlette(lifespan=app.lifespan)
    async with web.router.lifespan_context(web):
        assert processor.health().state == "ready"
        assert await find_status(app, "/health/ready") == 200
    assert processor.health().state == "stopped"


async def test_the_configured_schedules_run_in_its_worker() -> None:
    tasks = [{"name": "t", "cron": "@daily", "job_name": "double", "payload": {"number": 1}}]
    app, processor = make_app(make_config(scheduler={"tasks": tasks}))
    async with app:
        (scheduler,) = (one for one in processor.services if isinstance(one, Scheduler))
        assert scheduler.running
        assert scheduler.names == ["t"]


async def test_a_scheduler_without_a_processor_runs_by_itself() -> None:
    scheduler = Scheduler(Processor("memory://"), in_workers=False)
    app = server.bootstrap(make_config())
    app.set_scheduler(scheduler)
    running = []
    async with app:
        running.append(scheduler.running)
    running.append(scheduler.running)
    assert running == [True, False]
    await scheduler.processor.close()


async def test_schedulers_can_be_turned_off() -> None:
    app, processor = make_app(make_config(scheduler={"enabled": False}))
    scheduler = Scheduler(processor)
    app.set_scheduler(scheduler)
    async with app:
        assert not scheduler.running


async def test_without_a_processor_only_the_server_runs(tmp_path: Path) -> None:
    app = server.bootstrap(make_config(jobs={"url": f"sqlite:///{tmp_path}/jobs.db"}))
    async with app:
        assert await find_status(app, "/health/ready") == 200
        assert await find_status(app, "/api/v1/status") == 200


async def test_a_port_in_use_stops_the_start_and_is_explained() -> None:
    app, _ = make_app()
    async with app:
        assert app.url
        port = int(app.url.rpartition(":")[2])
        other, processor = make_app(make_config(server={"port": port}))
        with pytest.raises(ConfigurationError, match=f"server.port: 127.0.0.1:{port} is in use"):
            await other.start()
        assert processor.health().state == "stopped"
        free, _ = make_app(make_config(server={"port": port, "enabled": False}))
        async with free:
            assert free.url is None


async def test_an_address_of_another_host_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [{"name": "a", "rights": ["read"], "variable": "MISSING"}]
    app, _ = make_app(make_config(server={"host": "192.0.2.1", "port": 0, "tokens": tokens}))
    with pytest.raises(ConfigurationError, match=r"server\.tokens, a: expected in the variable"):
        await app.start()
    monkeypatch.setenv("MISSING", "0123456789abcdef")
    with pytest.raises(ConfigurationError, match=r"server\.host: 192\.0\.2\.1:0 cannot be used"):
        await app.start()


async def test_a_name_of_loopback_is_an_address() -> None:
    app, _ = make_app(Config(server=ServerSettings(host="localhost", port=0)))
    async with app:
        assert app.url


def test_a_server_beyond_loopback_needs_tokens() -> None:
    with pytest.raises(ConfigurationError, match=r"Add under server: `tokens: \[{name: ops"):
        server.bootstrap(Config(server=ServerSettings(host="0.0.0.0")))


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "nimburion.server.management")
    app, _ = make_app()
    with pytest.raises(ConfigurationError, match=r"pip install 'nimburion\[server\]'"):
        asyncio.run(app.start())


def test_without_the_server_its_packages_are_not_imported() -> None:
    code = (
        "import asyncio, sys\n"
        "from nimburion import Processor, config, server\n"
        "app = server.bootstrap(config.load(server={'enabled': False}))\n"
        "app.set_job_processor(Processor('memory://'))\n"
        "async def main():\n"
        "    async with app: pass\n"
        "asyncio.run(main())\n"
        "print(sorted({'starlette', 'uvicorn'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


async def test_parts_are_set_before_the_start() -> None:
    app, processor = make_app()
    async with app:
        with pytest.raises(DefinitionError):
            app.set_job_processor(processor)
        with pytest.raises(DefinitionError):
            app.set_scheduler(Scheduler(Processor("memory://")))


async def test_another_package_adds_routes_with_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(_: Request) -> Response:
        return PlainTextResponse("# metrics")

    monkeypatch.setenv("TOKEN", "0123456789abcdef")
    tokens = [{"name": "a", "rights": ["read"], "variable": "TOKEN"}]
    app = Application(
        make_config(server={"port": 0, "tokens": tokens}),
        lambda _: [ExtraRoute("/extra", "read", respond)],
    )
    async with app, httpx.AsyncClient(base_url=app.url or "") as client:
        assert (await client.get("/extra")).status_code == 401
        response = await client.get("/extra", headers={"Authorization": "Bearer 0123456789abcdef"})
        assert response.text == "# metrics"


# Real processes

PROGRAM = """
import logging
from nimburion import Processor, Scheduler, config, job, server

logging.basicConfig(level=logging.INFO)

@job
async def note(number: int) -> None:
    with open("notes", "a") as file:
        file.write(f"{number}\\n")

@job
def read_pipe() -> str:
    with open("pipe") as file:
        return file.read()

cfg = config.load(server={"port": 0})
processor = Processor.from_config(cfg)
processor.register(note, read_pipe)
scheduler = Scheduler(processor)
scheduler.schedule("0 2 * * *", note.job(0))

app = server.bootstrap(cfg)
app.set_job_processor(processor)
app.set_scheduler(scheduler)
app.run(owns_process=True)
"""


class RunningProgram:
    """The program above in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr
        line = next(line for line in process.stderr if "management server: " in line)
        found = re.search(r"server: (\S+)", line)
        assert found
        self.client = httpx.Client(
            base_url=found[1], headers={"Content-Type": "application/json"}, timeout=DEADLINE
        )

    def find_state(self, job_id: str) -> str:
        """Return the state of a job."""
        return str(self.client.get(f"/api/v1/jobs/{job_id}").json()["state"])

    def is_ready(self) -> bool:
        """Return whether the program is ready."""
        return self.client.get("/health/ready").status_code == 200

    def enqueue(self, name: str, job_id: str, **payload: object) -> None:
        """Enqueue a job over the API."""
        body = {"name": name, "id": job_id, "payload": payload}
        assert self.client.post("/api/v1/jobs", json=body).status_code == 201


@contextmanager
def run_program(folder: Path) -> Iterator[RunningProgram]:
    """Run the program in a folder; kill it at the end if it still runs."""
    (folder / "program.py").write_text(PROGRAM)
    os.mkfifo(folder / "pipe")
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=folder, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            program = RunningProgram(process)
            with program.client:
                block_until(program.is_ready, "the program is ready")
                yield program
        finally:
            process.kill()


def read_jobs(folder: Path) -> list[JobRecord]:
    """Return all jobs of the backend in a folder."""

    async def read() -> list[JobRecord]:
        backend = SQLiteBackend(folder / "nimburion.db")
        await backend.open()
        try:
            return [record async for record in iterate_jobs(backend)]
        finally:
            await backend.close()

    return asyncio.run(read())


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing_and_turns_readiness_first(tmp_path: Path) -> None:
    with run_program(tmp_path) as program:
        program.enqueue("read_pipe", "slow")
        block_until(lambda: program.find_state("slow") == "processing", "the slow job runs")
        for number in range(100):
            program.enqueue("note", f"n{number}", number=number)
        program.process.send_signal(signal.SIGTERM)
        block_until(lambda: not program.is_ready(), "readiness turns")
        assert program.client.get("/health/live").status_code == 200
        assert program.find_state("slow") == "processing"
        program.enqueue("note", "late", number=-1)
        (tmp_path / "pipe").write_text("the end")
        assert program.process.wait(DEADLINE) == 0
        with pytest.raises(httpx.TransportError):
            program.client.get("/health/live")
    jobs = {record.id: record for record in read_jobs(tmp_path)}
    assert len(jobs) == 102
    assert jobs["slow"].state is State.COMPLETED
    assert jobs["late"].state is State.PENDING
    assert {record.state for record in jobs.values()} <= {State.COMPLETED, State.PENDING}
    assert {record.failures + record.lost for record in jobs.values()} == {0}
    notes = [int(line) for line in (tmp_path / "notes").read_text().split()]
    completed = [job_id for job_id, one in jobs.items() if one.state is State.COMPLETED]
    assert sorted(f"n{number}" for number in notes) == sorted(set(completed) - {"slow"})


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with run_program(tmp_path) as program:
        program.enqueue("read_pipe", "slow")
        block_until(lambda: program.find_state("slow") == "processing", "the slow job runs")
        program.process.send_signal(signal.SIGTERM)
        block_until(lambda: not program.is_ready(), "readiness turns")
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(DEADLINE) == 0
    (record,) = read_jobs(tmp_path)
    assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)


def test_the_command_runs_the_server_without_a_worker(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nimburion", "server", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            program = RunningProgram(process)
            with program.client:
                status = program.client.get("/api/v1/status").json()
                assert (status["worker"], status["caller"]) == (None, "local")
                program.enqueue("note", "a", number=1)
                process.send_signal(signal.SIGINT)
                assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert [record.id for record in read_jobs(tmp_path)] == ["a"]


def test_the_command_of_a_worker_runs_the_server_too(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from nimburion import Processor, job\n\n"
        "@job\ndef note(number: int) -> None: ...\n\n"
        "processor = Processor('sqlite:///nimburion.db')\nprocessor.register(note)\n"
    )
    command = [sys.executable, "-m", "nimburion", "worker", "app:processor", "--server"]
    with subprocess.Popen(
        [*command, "--server-port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            program = RunningProgram(process)
            with program.client:
                block_until(program.is_ready, "the worker is ready")
                program.enqueue("note", "a", number=1)
                block_until(lambda: program.find_state("a") == "completed", "the job is completed")
                page = program.client.get("/metrics").text
                process.send_signal(signal.SIGTERM)
                assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert (
        'nimburion_jobs_processed_total{queue="default",name="note",outcome="completed"} 1' in page
    )
    assert "nimburion_worker_slots 10" in page


def test_the_port_of_no_server_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from nimburion import Processor\nprocessor = Processor('sqlite:///n.db')\n"
    )
    command = [sys.executable, "-m", "nimburion", "worker", "app:processor", "--server-port", "0"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "nimburion: --server-port needs --server"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host: 0.0.0.0 can be reached from other hosts"),
        (["--backend", "memory://"], "memory:// is a memory backend"),
        (["--port", "70000"], "70000 is not in the range 0<=x<=65535"),
    ],
)
def test_a_command_that_cannot_run_says_why_in_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "nimburion", "server", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert json.dumps(list(tmp_path.iterdir())) == "[]"
