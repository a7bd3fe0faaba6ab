"""The registry of metrics: collects the families of its sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from msgspec.structs import replace

from nimburion.telemetry.families import (
    OPENMETRICS_CONTENT_TYPE,
    PROMETHEUS_CONTENT_TYPE,
    Family,
    render_openmetrics,
    render_prometheus,
)

ExemplarSource = Callable[[str, int], Mapping[str, str] | None]


class MetricsSource(Protocol):
    """Something that can be measured."""

    def collect(self) -> Iterable[Family]:
        """Return the current families. Fast, and without I/O."""
        ...


class MetricsRegistry:
    """The metrics of one process. Families of the same name are merged.

    Args:
        namespace: the first part of every name.
    """

    def __init__(self, namespace: str = "nimburion") -> None:
        self.namespace: str = namespace
        self.exemplar_source: ExemplarSource | None = None
        """Returns the labels of an exemplar by job id and attempt; None while jobs are not traced.
        """
        self._sources: tuple[MetricsSource, ...] = ()

    def add_source(self, source: MetricsSource) -> None:
        """Collect the families of this source too."""
        self._sources = (*self._sources, source)

    def collect(self) -> list[Family]:
        """Return the current families of all sources, ordered by name."""
        merged: dict[str, Family] = {}
        for source in self._sources:
            for family in source.collect():
                known = merged.get(family.name)
                merged[family.name] = family if known is None else _join(known, family)
        return [merged[name] for name in sorted(merged)]

    def render(self, accept: str = "") -> tuple[str, str]:
        """Return the page and its content type for a request with this `Accept` header."""
        if _accepts_openmetrics(accept):
            return render_openmetrics(self.collect(), self.namespace), OPENMETRICS_CONTENT_TYPE
        return render_prometheus(self.collect(), self.namespace), PROMETHEUS_CONTENT_TYPE


def _join(first: Family, second: Family) -> Family:
    """Return a family with the series of both."""
    return replace(
        first,
        samples=[*first.samples, *second.samples],
        histograms=[*first.histograms, *second.histograms],
    )


def _accepts_openmetrics(accept: str) -> bool:
    return any(
        part.split(";")[0].strip().lower() == "application/openmetrics-text"
        for part in accept.split(",")
    )
