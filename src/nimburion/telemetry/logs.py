"""Log records that name the job they are about: a filter, a text formatter and a JSON formatter.

`nimburion worker` uses them. An application that configures its own logging adds the filter to its
handlers:

```python
from nimburion.jobs import get_current_context
from nimburion.telemetry.logs import AttemptFilter, JSONFormatter

handler = logging.StreamHandler()
handler.addFilter(AttemptFilter(get_current_context))
handler.setFormatter(JSONFormatter())
logging.basicConfig(level="INFO", handlers=[handler])
```
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Protocol, TextIO

from nimburion.core.errors import ConfigurationError
from nimburion.core.text.escaping import escape_controls, escape_lines
from nimburion.core.text.shortening import shorten

LogFormat = Literal["text", "json"]
FORMATS: tuple[LogFormat, ...] = ("text", "json")

FIELDS = (
    "job_id",
    "job_name",
    "queue",
    "attempt",
    "tenant",
    "correlation_id",
    "trace_id",
    "span_id",
    "arguments",
)
"""The attributes that `AttemptFilter` sets on records, in the order of the formatters."""

MAX_ARGUMENTS = 1_000
"""The maximum number of characters of `arguments`; longer texts are cut."""

_ExceptionInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)
"""The result type of `sys.exc_info`."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LoggedAttempt(Protocol):
    """The part of an attempt's context that is logged."""

    payload: bytes

    @property
    def job_id(self) -> str:
        """The job's id."""
        ...

    @property
    def name(self) -> str:
        """The job's name."""
        ...

    @property
    def queue(self) -> str:
        """The queue that the job was reserved from."""
        ...

    @property
    def attempt(self) -> int:
        """The number of the attempt."""
        ...

    @property
    def tenant(self) -> str | None:
        """The tenant of the job."""
        ...

    @property
    def correlation_id(self) -> str | None:
        """The correlation id of the job."""
        ...


class AttemptFilter(logging.Filter):
    """Adds the job of the running attempt to each record, as attributes. It drops no record.

    The attributes are `FIELDS`. Those without a value are not set, and those that a record has
    already are not changed. `trace_id` and `span_id` are those of the current OpenTelemetry span.

    Add it to handlers, not to loggers: a logger's filters do not see the records of the loggers
    below it.

    Args:
        find_attempt: returns the context of the attempt that runs in this task or thread, or None:
            `nimburion.jobs.get_current_context`.
        arguments: add the arguments of the job, as JSON. They may be secret.
    """

    def __init__(
        self, find_attempt: Callable[[], LoggedAttempt | None], *, arguments: bool = False
    ) -> None:
        super().__init__()
        self._find_attempt = find_attempt
        self._adds_arguments = arguments

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the attributes, and return True."""
        values = record.__dict__
        attempt = self._find_attempt()
        if attempt is not None:
            values.setdefault("job_id", attempt.job_id)
            values.setdefault("job_name", attempt.name)
            values.setdefault("queue", attempt.queue)
            values.setdefault("attempt", attempt.attempt)
            _set_unless_none(values, "tenant", attempt.tenant)
            _set_unless_none(values, "correlation_id", attempt.correlation_id)
            if self._adds_arguments:
                values.setdefault("arguments", _read_arguments(attempt.payload))
        _add_trace(values)
        return True


class _RobustFormatter(logging.Formatter):
    """Formats every record.

    If `format` raised an error, logging would write it with its raw text to standard error, and the
    record would be missing.
    """

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self.format_record(record)
        except Exception as error:  # noqa: BLE001 - of the message, its arguments or a field
            return self.format_record(_replace_message(record, error))

    def format_record(self, record: logging.LogRecord) -> str:
        """Return the text of a record. Raises whatever the texts of its values raise."""
        return super().format(record)

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 (logging's name)
        return format_exception(ei)


class TextFormatter(_RobustFormatter):
    """One line a record: time, level, logger, message, and the fields of the job.

    Control characters are escaped, so that a record cannot send control sequences to the terminal.
    Only tracebacks contain line breaks. Their lines are indented, so that the message of an
    exception cannot look like another record.
    """

    def __init__(self, fmt: str = "%(asctime)s %(levelname)-7s %(name)s %(message)s") -> None:
        super().__init__(fmt)

    def format_record(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        # Escape the whole text: another handler may have cached the traceback in the record.
        return escape_lines(super().format_record(record)).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the first line of a record."""
        parts = [super().formatMessage(record), *_list_fields(record)]
        return escape_controls(" ".join(parts))


class JSONFormatter(_RobustFormatter):
    """One JSON object a record, in ASCII, on one line.

    It has `time` (ISO 8601, UTC), `level`, `logger`, `message`, the fields of the job, whatever
    the call passed as `extra`, and `exception` and `stack` where there are some. A value that is
    not JSON becomes a text.
    """

    def format_record(self, record: logging.LogRecord) -> str:
        """Return the JSON of a record."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        given = record.__dict__
        for name in FIELDS:
            _set_unless_none(values, name, given.get(name))
        for name, value in given.items():
            if name not in _STANDARD:
                _set_unless_none(values, name, value)
        if record.exc_info or record.exc_text:
            values["exception"] = self._format_exception(record)
        if record.stack_info:
            values["stack"] = self.formatStack(record.stack_info)
        return _encode(values)

    def _format_exception(self, record: logging.LogRecord) -> str:
        if not record.exc_text and record.exc_info:
            record.exc_text = self.formatException(record.exc_info)
        return record.exc_text or ""


def format_exception(info: _ExceptionInfo) -> str:
    """Return a traceback as text, also if the class of the exception keeps it from being made."""
    try:
        return logging.Formatter().formatException(info)
    except Exception:  # noqa: BLE001 - an attribute of the class raises
        return "<the traceback of this exception cannot be formatted>"


def configure_logging(
    *,
    format: LogFormat = "text",  # noqa: A002 (the name of the option and the setting)
    level: str = "info",
    find_attempt: Callable[[], LoggedAttempt | None] = lambda: None,
    arguments: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Log all records of this level and above to a stream, by default standard error.

    Does nothing if the root logger has a handler already: the application configured logging.

    Args:
        format: `text` or `json`.
        level: `debug`, `info`, `warning` or `error`.
        find_attempt: see `AttemptFilter`.
        arguments: add the arguments of the jobs. They may be secret.
        stream: where the records go.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"the log format is one of text, json, not {format!r}")
    handler = logging.StreamHandler(stream)
    handler.setLevel(level.upper())  # a library may have set the level of its own logger
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    handler.addFilter(AttemptFilter(find_attempt, arguments=arguments))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _replace_message(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return a copy of a record with a message that states why its own cannot be formatted."""
    template = record.msg if type(record.msg) is str else ""
    message = (
        f"{template!r} of {record.pathname}:{record.lineno} cannot be formatted: "
        f"{_read_type_name(error)}: {_to_text(error)}"
    )
    return logging.makeLogRecord({**record.__dict__, "msg": message, "args": ()})


def _set_unless_none(values: dict[str, Any], name: str, value: object) -> None:
    if value is not None and values.get(name) is None:
        values[name] = value


def _add_trace(values: dict[str, Any]) -> None:
    """Add the ids of the current span, if the application uses OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        values.setdefault("trace_id", f"{context.trace_id:032x}")
        values.setdefault("span_id", f"{context.span_id:016x}")


def _read_arguments(payload: bytes) -> str:
    return shorten(payload.decode("utf-8", "backslashreplace"), MAX_ARGUMENTS)


def _list_fields(record: logging.LogRecord) -> list[str]:
    """Return the fields of a record as `name=value`."""
    values = record.__dict__
    return [
        f"{name}={_quote(_to_text(values[name]))}"
        for name in FIELDS
        if values.get(name) is not None
    ]


def _quote(text: str) -> str:
    """Return a text in quotation marks if it would not read as one word.

    >>> _quote("a"), _quote("a b")
    ('a', '"a b"')
    """
    is_word = bool(text) and not any(character in ' "=' for character in text)
    return text if is_word else json.dumps(text, ensure_ascii=False)


def _encode(values: dict[str, Any]) -> str:
    try:
        text = json.dumps(values, default=_to_text, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        text = json.dumps({str(name): _to_text(value) for name, value in values.items()})
    return text.replace("\x7f", "\\u007f")


def _to_text(value: object) -> str:
    with suppress(Exception):
        return str(value)
    return f"<{_read_type_name(value)}>"


def _read_type_name(value: object) -> str:
    """Return the name of the type of a value, whatever the attributes of its class do."""
    return str(vars(type)["__name__"].__get__(type(value)))
