"""Metrics of several processes as one: their counters and histograms added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from nimburion.telemetry.families import Exemplar, Family, HistogramSample, Sample

_COMBINE: dict[str, Callable[[float, float], float]] = {
    "sum": lambda first, second: first + second,
    "max": max,
    "min": min,
}


def combine_families(groups: Iterable[Iterable[Family]]) -> list[Family]:
    """Return one family for each name, with one series for each set of labels, ordered by name.

    Counters and histograms are added up. `Family.aggregation` decides for gauges.
    """
    combined: dict[str, Family] = {}
    for group in groups:
        for family in group:
            known = combined.get(family.name)
            if known is None or known.bounds != family.bounds:
                combined[family.name] = family
            else:
                combined[family.name] = _combine(known, family)
    return [combined[name] for name in sorted(combined)]


def select_counts(families: Iterable[Family]) -> list[Family]:
    """Return the counters and histograms, without exemplars: what stays when a process ends."""
    return [
        replace(family, histograms=[replace(each, exemplars={}) for each in family.histograms])
        for family in families
        if family.kind in {"counter", "histogram"}
    ]


def _combine(first: Family, second: Family) -> Family:
    how = {"counter": "sum", "info": "max"}.get(first.kind, first.aggregation)
    combine = _COMBINE[how]
    samples: dict[str, Sample] = {each.labels.text: each for each in first.samples}
    for sample in second.samples:
        known = samples.get(sample.labels.text)
        value = sample.value if known is None else combine(known.value, sample.value)
        samples[sample.labels.text] = Sample(sample.labels, value)
    histograms = {each.labels.text: each for each in first.histograms}
    for histogram in second.histograms:
        known_histogram = histograms.get(histogram.labels.text)
        histograms[histogram.labels.text] = (
            histogram if known_histogram is None else _add(known_histogram, histogram)
        )
    return replace(first, samples=[*samples.values()], histograms=[*histograms.values()])


def _add(first: HistogramSample, second: HistogramSample) -> HistogramSample:
    exemplars: dict[int, Exemplar] = {**first.exemplars}
    for index, exemplar in second.exemplars.items():
        if index not in exemplars or exemplars[index].at < exemplar.at:
            exemplars[index] = exemplar
    return HistogramSample(
        first.labels,
        [a + b for a, b in zip(first.buckets, second.buckets, strict=True)],
        first.sum + second.sum,
        exemplars,
    )
