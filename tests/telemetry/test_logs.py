"""Log records carry the job that they are about, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from nimburion.core.errors import ConfigurationError
from nimburion.jobs import get_current_context, job
from nimburion.telemetry.logs import (
    AttemptFilter,
    JSONFormatter,
    LogFormat,
    TextFormatter,
    configure_logging,
)
from nimburion.telemetry.tracing import Tracing, instrument
from nimburion.testing.plugin import MakeProcessor

application_log = logging.getLogger("application.mail")


@job(queue="mail", max_retries=0)
async def deliver(to: str) -> None:
    application_log.info("delivers to %s", to)
    if to == "nobody":
        raise OSError("no route")


@job(queue="mail")
def deliver_in_a_thread(to: str) -> None:
    application_log.info("delivers to %s", to)


class Log:
    """A root logger that writes to a text."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)

    def configure(self, formatter: logging.Formatter, *, arguments: bool = False) -> None:
        """Format the records so."""
        self.handler.setFormatter(formatter)
        self.handler.addFilter(AttemptFilter(get_current_context, arguments=arguments))

    @property
    def lines(self) -> list[str]:
        """What was written."""
        return self._stream.getvalue().splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What was written, as JSON."""
        return [json.loads(line) for line in self.lines]

    def find(self, logger: str) -> dict[str, Any]:
        """The only record of a logger about a job."""
        (found,) = [one for one in self.objects if one["logger"] == logger and "job_id" in one]
        return found


@pytest.fixture
def log() -> Iterator[Log]:
    """All records from level info, in one text."""
    log, root = Log(), logging.getLogger()
    level = root.level
    root.addHandler(log.handler)
    root.setLevel(logging.INFO)
    yield log
    root.removeHandler(log.handler)
    root.setLevel(level)


def make_record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("n").makeRecord(
        "n", logging.INFO, "f", 1, message, arguments, None, extra=dict(extra)
    )


@pytest.mark.parametrize(
    ("handler", "name"),
    [(deliver, "deliver"), (deliver_in_a_thread, "deliver_in_a_thread")],
)
async def test_the_application_s_own_records_name_the_job(
    handler: Any, name: str, log: Log, nimburion_processor: MakeProcessor
) -> None:
    log.configure(JSONFormatter())
    processor = nimburion_processor(handler)
    async with processor:
        job_id = await processor.enqueue(handler.job("ann"), tenant="acme", correlation_id="r-1")
        await processor.drain()
    application_log.info("after the job")
    record = log.objects[-2]
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "level": "info",
        "logger": "application.mail",
        "message": "delivers to ann",
        "job_id": job_id,
        "job_name": name,
        "queue": "mail",
        "attempt": 1,
        "tenant": "acme",
        "correlation_id": "r-1",
    }
    assert "job_id" not in log.objects[-1]


async def test_a_failure_names_its_job_its_trace_and_its_exception(
    log: Log, nimburion_processor: MakeProcessor
) -> None:
    log.configure(JSONFormatter())
    processor = nimburion_processor(deliver)
    provider = TracerProvider(shutdown_on_exit=False)
    instrument(processor, Tracing(provider))
    async with processor:
        job_id = await processor.enqueue(deliver.job("nobody"), tenant="acme")
        await processor.drain()
    own, failure = log.find("application.mail"), log.find("nimburion.worker")
    assert failure["level"] == "error"
    assert (failure["job_id"], failure["tenant"]) == (job_id, "acme")
    assert failure["trace_id"] == own["trace_id"]
    assert failure["span_id"] == own["span_id"]
    assert len(own["trace_id"]) == 32
    assert failure["exception"].startswith("Traceback")
    assert failure["exception"].endswith("OSError: no route")


async def test_arguments_are_logged_only_if_asked(
    log: Log, nimburion_processor: MakeProcessor
) -> None:
    log.configure(JSONFormatter(), arguments=True)
    processor = nimburion_processor(deliver)
    async with processor:
        await processor.enqueue(deliver.job("ann"))
        await processor.enqueue(deliver.job("a" * 2_000))
        await processor.drain()
    short, long = [one["arguments"] for one in log.objects if "arguments" in one]
    assert json.loads(short) == {"to": "ann"}
    assert len(long) == 1_000


async def test_text_has_the_fields_behind_the_message(
    log: Log, nimburion_processor: MakeProcessor
) -> None:
    log.configure(TextFormatter("%(name)s %(message)s"), arguments=True)
    processor = nimburion_processor(deliver)
    async with processor:
        await processor.enqueue(deliver.job("ann"), id="a", tenant="acme", correlation_id="r-1")
        await processor.drain()
    assert log.lines[-1] == (
        "application.mail delivers to ann job_id=a job_name=deliver queue=mail attempt=1 "
        r'tenant=acme correlation_id=r-1 arguments="{\"to\":\"ann\"}"'
    )


@pytest.mark.parametrize("formatter", [TextFormatter("%(message)s"), JSONFormatter()])
def test_no_record_can_steer_a_terminal_or_forge_a_line(formatter: logging.Formatter) -> None:
    record = make_record("a\x1b[31m\x07\r\nforged \u202e\x9b\x7f %s", "\ud800", tenant="x\ny\x1b")
    text = formatter.format(record)
    assert text.isascii()
    assert text.isprintable()
    assert "forged" in text


def test_json_has_what_the_call_added() -> None:
    record = make_record("x", order=17, queue=None, time="late", when={1, 2}, ratio=0.5)
    values = json.loads(JSONFormatter().format(record))
    assert values["order"] == 17
    assert values["ratio"] == 0.5
    assert values["when"] == "{1, 2}"
    assert values["time"] != "late"
    assert "queue" not in values
    assert "args" not in values


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")


@pytest.mark.parametrize("value", [float("nan"), {(1, 2): 3}, Hostile(), [Hostile()]])
def test_json_is_valid_whatever_the_call_added(value: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = JSONFormatter().format(make_record("x", given=value))
    assert json.loads(text, parse_constant=refuse)["message"] == "x"


def test_json_shows_the_stack() -> None:
    record = make_record("x")
    record.stack_info = "Stack\n  line"
    assert json.loads(JSONFormatter().format(record))["stack"] == "Stack\n  line"


def test_a_field_of_the_record_stays() -> None:
    record = make_record("x", job_id="own")
    assert AttemptFilter(lambda: None).filter(record)
    assert record.__dict__["job_id"] == "own"


CONFIGURED = """
import logging, sys
from nimburion.telemetry.logs import configure_logging
configure_logging(format=sys.argv[1], level="warning")
configure_logging(format="text", level="debug")  # too late: nothing changes
logging.getLogger("a").info("not shown")
logging.getLogger("library").setLevel("INFO")
logging.getLogger("library").info("not shown")
logging.getLogger("a").warning("shown")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logging_is_configured_once(log_format: LogFormat) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CONFIGURED, log_format], capture_output=True, text=True, check=True
    )
    (line,) = result.stderr.splitlines()
    if log_format == "json":
        assert json.loads(line)["message"] == "shown"
    else:
        assert line.endswith(" WARNING a shown")


RAW = "\x1b]0;raw\x07"
"""A control sequence for terminals."""


class OddClass(type):
    """Its attributes raise."""

    def __getattribute__(cls, name: str) -> Any:
        if name in {"__qualname__", "__name__", "__module__"}:
            raise RuntimeError(RAW)
        return super().__getattribute__(name)


class OddError(Exception, metaclass=OddClass):
    """An exception whose traceback cannot be formatted."""


class Odd:
    """A value without a text."""

    def __repr__(self) -> str:
        raise OddError(RAW)


def log_odd_records(log: logging.Logger) -> None:
    try:
        raise OddError(RAW)
    except OddError:
        log.exception("an odd error")
    log.info("the value %s", Odd())
    log.info("%d", RAW)
    log.info("a field", extra={"tenant": Odd()})


@pytest.mark.parametrize("formatter", [TextFormatter(), JSONFormatter()])
def test_a_record_that_cannot_be_formatted_is_logged_without_control_characters(
    formatter: logging.Formatter, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the logging module reports it, with the raw text of the error."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log = logging.Logger("odd")  # noqa: LOG001 (without a parent: pytest cannot format these either)
    log.addHandler(handler)
    log_odd_records(log)
    written = stream.getvalue()
    for part in ("an odd error", "the value %s", "TypeError", "a field", Path(__file__).name):
        assert part in written
    assert len([line for line in written.splitlines() if not line.startswith(" ")]) == 4
    assert RAW not in written
    assert capsys.readouterr().err == ""


def test_another_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="text, json"):
        configure_logging(format="yaml")  # type: ignore[arg-type]


APPLICATION = """
import logging, os, signal
from nimburion import config
from nimburion.jobs import Processor, job

@job
async def stop() -> None:
    logging.getLogger("application").warning("stops the worker")
    os.kill(os.getpid(), signal.SIGTERM)

processor = Processor.from_config(config.load())
processor.register(stop)
"""


@pytest.mark.parametrize(
    ("arguments", "file", "is_json"),
    [
        (["--log-format", "json"], "", True),
        ([], "telemetry: {log_format: json}", True),
        (["--log-format", "text"], "telemetry: {log_format: json}", False),
        ([], "", False),
    ],
)
def test_a_worker_logs_as_asked(
    arguments: list[str], file: str, is_json: bool, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    (tmp_path / "config.yaml").write_text(file)
    command = [sys.executable, "-m", "nimburion"]
    subprocess.run([*command, "enqueue", "stop", "--id", "a"], cwd=tmp_path, check=True)
    result = subprocess.run(
        [*command, "worker", "app:processor", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    (line,) = [one for one in result.stderr.splitlines() if "stops the worker" in one]
    if is_json:
        assert all(json.loads(one) for one in result.stderr.splitlines())
        assert json.loads(line)["job_id"] == "a"
    else:
        assert line.endswith(
            "application stops the worker job_id=a job_name=stop queue=default attempt=1"
        )
