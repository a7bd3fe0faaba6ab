"""When a worker stops by itself."""

from __future__ import annotations

from typing import NamedTuple


class StopConditions(NamedTuple):
    """When a worker stops by itself. The jobs that run then are never interrupted."""

    until_empty: bool = False
    """Stop when the backend has no job that this worker may start now, and none runs here."""
    max_jobs: int | None = None
    """Stop after this many jobs; None: any number."""


RUN_UNTIL_STOPPED = StopConditions()
