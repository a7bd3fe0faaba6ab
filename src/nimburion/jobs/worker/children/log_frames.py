"""Log records of a child process: sent as frames, and logged by the parent."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from nimburion.core.text.shortening import shorten
from nimburion.jobs.handling.context import get_current_context
from nimburion.jobs.worker.children.line_budget import LINES_PER_SECOND, LineBudget
from nimburion.jobs.worker.children.messages import Logged, ToParent
from nimburion.telemetry.logs import AttemptFilter, format_exception

MAX_LINE = 8_192
"""Characters of a message or an output line; longer ones are cut."""
_MAX_TRACEBACK = 32_768
_MAX_FIELD = 1_024
_MAX_INTEGER = 1 << 63
"""MessagePack has no larger ones."""

_SENT = ("created", "pathname", "lineno", "funcName", "thread", "threadName", "process")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class ParentHandler(logging.Handler):
    """Sends the records of a child to its parent, at most `LINES_PER_SECOND`."""

    def __init__(self, send: Callable[[ToParent], None], monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._send = send
        self._budget = LineBudget(monotonic)
        self._sending = threading.local()
        self.addFilter(AttemptFilter(get_current_context))

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            if self._budget.allow():
                fields = _read_fields(record)
                self._send(Logged(record.name, record.levelno, fields, self._budget.take_dropped()))
        except Exception:  # noqa: BLE001 - a record whose text cannot be made
            self.handleError(record)

    def report_dropped(self) -> None:
        """Send how many records were dropped, if any were, at the end of a call."""
        dropped = self._budget.take_dropped()
        if dropped:
            self._send(Logged("", logging.WARNING, {}, dropped))


def log_record(frame: Logged, fields: dict[str, Any]) -> None:
    """Log a record of a child in this process. `fields` are those of the job that it runs."""
    if frame.dropped:
        logging.getLogger("nimburion.worker").warning(
            "job %s: %d log records were dropped; a child process may log %g a second",
            fields.get("job_id"),
            frame.dropped,
            LINES_PER_SECOND,
            extra=fields,
        )
    logger = logging.getLogger(frame.logger)
    if not frame.logger or not logger.isEnabledFor(frame.level):
        return
    values = frame.fields
    path = str(values.get("pathname", ""))
    logger.handle(
        logging.makeLogRecord(
            {
                **fields,
                **values,
                "name": frame.logger,
                "levelno": frame.level,
                "levelname": logging.getLevelName(frame.level),
                "args": (),
                "filename": os.path.basename(path),  # noqa: PTH119 (a text)
                "module": os.path.splitext(os.path.basename(path))[0],  # noqa: PTH119, PTH122
            }
        )
    )


def _read_fields(record: logging.LogRecord) -> dict[str, str | int | float | bool | None]:
    values = record.__dict__
    fields = {name: values[name] for name in _SENT}
    fields["msg"] = cut(record.getMessage(), MAX_LINE)
    if record.exc_info:
        text = record.exc_text or format_exception(record.exc_info)
        fields["exc_text"] = cut(text, _MAX_TRACEBACK)
    if record.stack_info:
        fields["stack_info"] = cut(record.stack_info, _MAX_TRACEBACK)
    for name, value in values.items():
        if name not in _STANDARD:
            fields[name] = _to_plain(value)
    return fields


def _to_plain(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < _MAX_INTEGER:
        return int(value)
    return cut(str(value), _MAX_FIELD)


def cut(text: str, limit: int) -> str:
    """Return a text with at most `limit` characters, as valid Unicode."""
    return shorten(text, limit).encode("utf-8", "backslashreplace").decode()
