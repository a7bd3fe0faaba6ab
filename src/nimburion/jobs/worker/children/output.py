"""What a child process prints, as log lines of the job that it runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from nimburion.jobs.worker.children.line_budget import LINES_PER_SECOND, LineBudget
from nimburion.jobs.worker.children.log_frames import MAX_LINE, cut

_log = logging.getLogger("nimburion.job.output")

_READ_SIZE = 65_536
_INTERVAL = 0.1
"""Seconds. The unit of time of `_MAX_READ`."""
_MAX_READ = 262_144
"""Bytes to read in one interval. A child that prints more has to wait: its worker does not."""
_KEPT_LINES = 40
_KEPT_CHARACTERS = 400


class OutputReader:
    """Reads the standard output and error of a child, and logs each line.

    The cost to the event loop is bounded: bytes in a time, lines in a time, and the length of a
    line. Lines over `LINES_PER_SECOND` are counted and dropped.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        monotonic: Callable[[], float],
        describe_job: Callable[[], dict[str, Any]],
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._describe_job = describe_job
        self._budget = LineBudget(monotonic)
        self._left = _MAX_READ
        self._timer: asyncio.TimerHandle | None = None
        self._line = bytearray()
        self._is_open = True
        self.latest_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        """The beginnings of the last lines of the running job."""
        os.set_blocking(descriptor, False)
        loop.add_reader(descriptor, self.read)

    def read(self) -> None:
        """Log the lines that have arrived."""
        while self._is_open and self._left > 0:
            try:
                data = os.read(self._descriptor, _READ_SIZE)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            self._left -= len(data)
            if self._timer is None:
                self._timer = self._loop.call_later(_INTERVAL, self._continue)
            if self._left <= 0:
                self._loop.remove_reader(self._descriptor)
            self._take(data)

    def end_job(self) -> None:
        """Log what the job has printed, also a line without an end, and forget it."""
        self.read()
        if self._line:
            self._log_line()
        dropped = self._budget.take_dropped()
        if dropped:
            _log.warning(
                "%d lines of output were dropped; a child process may print %g a second",
                dropped,
                LINES_PER_SECOND,
                extra=self._describe_job(),
            )
        self.latest_lines.clear()

    def close(self) -> None:
        """Stop reading."""
        if self._is_open:
            self._is_open = False
            if self._timer is not None:
                self._timer.cancel()
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _continue(self) -> None:
        self._timer = None
        if self._left <= 0:
            self._loop.add_reader(self._descriptor, self.read)
        self._left = _MAX_READ

    def _take(self, data: bytes) -> None:
        *ended, rest = data.split(b"\n") if self._budget.has_room() else self._skip(data)
        for part in ended:
            self._add(part)
            self._log_line()
        self._add(rest)

    def _skip(self, data: bytes) -> list[bytes]:
        """Drop the complete lines of a flood without looking at them."""
        count = data.count(b"\n")
        if not count:
            return [data]
        self._budget.dropped += count
        self._line.clear()
        return [data[data.rindex(b"\n") + 1 :]]

    def _add(self, part: bytes) -> None:
        room = MAX_LINE - len(self._line)
        if room > 0:
            self._line += part[:room]

    def _log_line(self) -> None:
        text = self._line.decode("utf-8", "backslashreplace")
        self._line.clear()
        self.latest_lines.append(cut(text, _KEPT_CHARACTERS))
        if self._budget.allow():
            _log.info("%s", text, extra=self._describe_job())
