"""Flask: each application has a processor, its handlers a context, its commands the settings."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app, has_app_context

from nimburion.cli.flask import flask_group, load_processor
from nimburion.core.errors import ConfigurationError, DefinitionError, NotOpen
from nimburion.core.job import State
from nimburion.integrations.flask import FlaskJobs, find_processor, load_configuration
from nimburion.jobs import Job, Processor, job
from nimburion.jobs.client.client import Client
from nimburion.scheduler import ScheduleInfo
from tests.waiting import DEADLINE

FLASK = (sys.executable, "-m", "flask")
jobs = FlaskJobs()


@jobs.job(queue="mail")
def welcome(address: str) -> str:
    return f"{current_app.name}: mail to {address}"


@jobs.job
async def welcome_later(address: str) -> str:
    job_id = await welcome.options(priority=7).enqueue(address)
    return f"{current_app.name}: {job_id}"


class Report(Job):
    year: int

    def process(self, _: object) -> str:
        return str(current_app.config["GREETING"])


jobs.register(Report)


def make_app(name: str, url: str = "memory://", **settings: object) -> Flask:
    app = Flask(name)
    app.config.update(NIMBURION_URL=url, GREETING="hello", **settings)
    jobs.init_app(app)

    @app.post("/signups/<address>")
    def sign_up(address: str) -> dict[str, str]:
        return {"job": welcome.enqueue_sync(address)}

    @app.get("/jobs/<job_id>")
    def show(job_id: str) -> dict[str, Any]:
        return jobs.processor.sync.get_status(job_id).public_dict()

    return app


def test_views_enqueue_and_a_test_drains() -> None:
    app = make_app("shop")
    client = app.test_client()
    job_id = client.post("/signups/ann").get_json()["job"]
    assert client.get(f"/jobs/{job_id}").get_json()["state"] == "pending"
    with find_processor(app).sync as sync:
        assert sync.drain() == 1
    assert client.get(f"/jobs/{job_id}").get_json()["result"] == "shop: mail to ann"
    find_processor(app).sync.close()


def test_jobs_take_the_id_and_the_trace_of_the_request() -> None:
    app = make_app("shop")
    client, parent = app.test_client(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    taken = client.post("/signups/ann", headers={"X-Request-ID": "req-7", "traceparent": parent})
    without = client.post("/signups/ann")
    with find_processor(app).sync as sync:
        status = sync.get_status(taken.get_json()["job"])
        assert (status.correlation_id, status.headers) == ("req-7", {"traceparent": parent})
        status = sync.get_status(without.get_json()["job"])
        assert (status.correlation_id, status.headers) == (None, {})


def test_each_handler_runs_in_a_context_of_its_application() -> None:
    for name in ("first", "second"):
        app = make_app(name)
        with app.app_context():
            later, report = welcome_later.enqueue_sync("ann"), jobs.processor.sync
            year = report.enqueue(Report(year=2026))
        with find_processor(app).sync as sync:
            assert sync.drain() == 3
            prefix, _, mail = sync.wait(later).partition(": ")
            assert (prefix, sync.wait(year)) == (name, "hello")
            assert sync.wait(mail) == f"{name}: mail to ann"
            assert sync.get_status(mail).priority == 7
    assert not has_app_context()


def test_jobs_that_are_declared_late_are_registered_too() -> None:
    own = FlaskJobs()
    app = Flask("late")
    app.config["NIMBURION_URL"] = "memory://"
    own.init_app(app)
    jobs.init_app(app)  # those of another package share the processor

    @own.job
    def late() -> str:
        return "late"

    with app.app_context(), find_processor().sync as sync:
        ids = [late.enqueue_sync(), welcome.enqueue_sync("bob")]
        sync.drain()
        assert [sync.get_status(each).state for each in ids] == [State.COMPLETED] * 2


def test_a_late_job_whose_name_is_taken_is_refused() -> None:
    own = FlaskJobs()
    app = Flask("taken")
    app.config["NIMBURION_URL"] = "memory://"
    own.init_app(app)

    @own.job(name="report")
    def first() -> str:
        return "first"

    with app.app_context():
        first.enqueue_sync()

        @own.job(name="report")
        def second() -> str:
            return "second"

        with pytest.raises(DefinitionError, match=r"'report' is taken by .*first"):
            second.enqueue_sync()


def test_arguments_name_another_backend_than_the_application() -> None:
    app = Flask("sections")
    app.config["NIMBURION_REDIS"] = {"addr": "redis-1:6379"}
    app.config["NIMBURION_CONCURRENCY"] = 3
    jobs = load_configuration(app, jobs={"url": "memory://"}).jobs
    assert (jobs.url, jobs.concurrency) == ("memory://", 3)


def test_settings_come_from_the_application() -> None:
    app = make_app("set", NIMBURION_CONCURRENCY=3, NIMBURION_MAX_RETRIES=0)
    settings = find_processor(app).settings
    assert (settings.concurrency, settings.max_retries) == (3, 0)
    with pytest.raises(ConfigurationError, match=r"did you mean.*concurrency"):
        make_app("typo", NIMBURION_CONCURENCY=3)


def test_outside_of_an_application_it_says_what_to_write() -> None:
    with pytest.raises(NotOpen, match=r"write `with app\.app_context\(\):`"):
        welcome.enqueue_sync("ann")
    app = Flask("bare")
    with app.app_context(), pytest.raises(DefinitionError, match=r"write `jobs\.init_app\(app\)`"):
        welcome.enqueue_sync("ann")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs `flask nimburion …` on an application with a SQLite file."""
    app = make_app("shop", f"sqlite:///{tmp_path}/jobs.db")
    app.cli.add_command(flask_group)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        result = app.test_cli_runner().invoke(args=["nimburion", *arguments])
        return result.exit_code, result.stdout, result.stderr

    return call


def test_commands_use_the_processor_of_the_application(run: Callable[..., Any]) -> None:
    code, job_id, _ = run("enqueue", "welcome", "--args", '{"address": "ann"}', "--queue", "mail")
    assert code == 0
    code, _, log = run("worker", "--burst", "--concurrency", "1")
    assert code == 0, log
    for limit in [each for each in threading.enumerate() if each.name == "nimburion-exit"]:
        limit.join(DEADLINE)  # it is lifted; otherwise it would end the process of these tests
    code, shown, _ = run("status", job_id.strip())
    assert (code, "completed" in shown) == (0, True)
    assert "shop: mail to ann" in shown


def test_an_error_of_a_command_is_one_line(run: Callable[..., Any]) -> None:
    code, job_id, error = run("enqueue", "welcom")
    assert (code, job_id) == (2, "")
    assert error == "nimburion: there is no job 'welcom'; did you mean 'welcome'?\n"
    run("enqueue", "welcome", "--args", '{"address": "ann"}')
    code, _, error = run("status", "unknown")
    assert code == 4
    assert error.startswith("nimburion: no job 'unknown'")
    assert error.count("\n") == 1
    assert run("workers", "--bad")[0] == 2


def test_the_help_lists_the_commands(run: Callable[..., Any]) -> None:
    code, text, _ = run("--help")
    assert code == 0
    assert "worker" in text
    assert "demo" not in text
    assert "MODULE:NAME" not in run("worker", "--help")[1] + run("enqueue", "--help")[1]


@job
def unregistered() -> None: ...


def test_a_function_of_job_is_registered() -> None:
    own = FlaskJobs()
    own.register(unregistered)
    app = Flask("plain")
    app.config["NIMBURION_URL"] = "memory://"
    own.init_app(app)
    with find_processor(app).sync as sync:
        sync.enqueue(unregistered.job())
        assert sync.drain() == 1


def test_the_processes_of_a_worker_have_the_settings_of_the_application(tmp_path: Path) -> None:
    (tmp_path / "own_app.py").write_text(
        "from flask import Flask\n"
        "from nimburion.integrations.flask import FlaskJobs\n"
        "def create_app():\n"
        "    app = Flask('own')\n"
        "    app.config['NIMBURION_URL'] = 'sqlite:///own.db'\n"
        "    app.config['NIMBURION_CONFIG'] = 'jobs.yaml'\n"
        "    FlaskJobs(app)\n"
        "    return app\n"
    )
    (tmp_path / "jobs.yaml").write_text(
        "telemetry: {log_format: json}\n"
        "scheduler: {tasks: [{name: night, cron: '0 2 * * *', job_name: report}]}\n"
    )
    (tmp_path / "config.yaml").write_text("of: another program\n")
    ended = subprocess.run(
        [*FLASK, "--app", "own_app", "nimburion", "worker", "--processes", "2", "--burst"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert ended.returncode == 0, ended.stderr
    assert {type(json.loads(line)) for line in ended.stderr.splitlines()} == {dict}
    with Processor(f"sqlite:///{tmp_path}/own.db").sync as sync:
        (record,) = sync.call(list_schedules)
    assert record.name == "night"


async def list_schedules(client: Client) -> list[ScheduleInfo]:
    """Return the schedules of a backend."""
    return [one async for one in client.schedules.list(0)]


def test_a_process_of_the_worker_finds_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "own_app.py").write_text(
        "from flask import Flask\n"
        "from nimburion.integrations.flask import FlaskJobs\n"
        "def create_app():\n"
        "    app = Flask('own')\n"
        "    app.config['NIMBURION_URL'] = 'sqlite:///own.db'\n"
        "    FlaskJobs(app)\n"
        "    return app\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FLASK_APP", "own_app")
    assert load_processor().backend.describe() == f"SQLite {tmp_path}/own.db"
