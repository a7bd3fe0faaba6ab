"""Metrics of this process's worker, from the vitals that it also sends with its heartbeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from nimburion.core.session import Vitals
from nimburion.telemetry.families import NO_LABELS, Family, Labels, Sample


class WorkerMetrics:
    """The metrics of a worker.

    Args:
        read_vitals: returns the vitals now; None while no worker runs here.
    """

    def __init__(self, read_vitals: Callable[[], Vitals | None]) -> None:
        self._read_vitals = read_vitals

    def collect(self) -> Iterable[Family]:
        """Return the families of the worker; none if no worker runs here."""
        vitals = self._read_vitals()
        if vitals is None:
            return
        yield _gauge("worker_slots", "Jobs that the worker may run at the same time.", vitals.slots)
        yield _gauge("worker_busy", "Jobs that the worker runs.", vitals.busy)
        yield _gauge(
            "worker_loop_lag_seconds",
            "Seconds that the event loop was late, at worst, since the last heartbeat.",
            vitals.loop_lag,
            "max",
        )
        if vitals.lease_margin is not None:
            yield _gauge(
                "worker_lease_margin_seconds",
                "Seconds that the leases had left, at least, when a heartbeat renewed them.",
                vitals.lease_margin,
                "min",
            )
        if vitals.rss:
            yield _gauge("worker_rss_bytes", "Resident memory of the process.", vitals.rss)
        yield Family(
            name="build",
            kind="info",
            help="Versions of the process.",
            samples=[
                Sample(
                    Labels(
                        {
                            "version": vitals.version,
                            "python": vitals.python,
                            "code_version": vitals.code_version,
                        }
                    ),
                    1,
                )
            ],
        )


def _gauge(
    name: str, text: str, value: float, aggregation: Literal["sum", "max", "min"] = "sum"
) -> Family:
    return Family(
        name=name,
        kind="gauge",
        help=text,
        samples=[Sample(NO_LABELS, value)],
        aggregation=aggregation,
    )
