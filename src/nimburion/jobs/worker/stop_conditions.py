"""When a worker stops by itself, and the message when it was stopped before it started."""

from __future__ import annotations

from typing import NamedTuple

STOPPED_BEFORE_START = "the processor was stopped before it had started"
"""Text of the `NotOpen` that a start raises when the worker is stopped meanwhile."""


class StopConditions(NamedTuple):
    """When a worker stops by itself. The jobs that run then are never interrupted."""

    until_empty: bool = False
    """Stop when the backend has no job that this worker may start now, and none runs here."""
    max_jobs: int | None = None
    """Stop after this many jobs; None: any number."""


RUN_UNTIL_STOPPED = StopConditions()
