"""Metrics of several processes become one page without a series twice."""

from __future__ import annotations

from nimburion.telemetry.aggregation import combine_families, select_counts
from nimburion.telemetry.families import (
    Exemplar,
    Family,
    HistogramSample,
    Labels,
    Sample,
    render_openmetrics,
)


def make_counter(**values: float) -> Family:
    samples = [Sample(Labels({"queue": queue}), value) for queue, value in values.items()]
    return Family(name="jobs", kind="counter", help="Jobs.", samples=samples)


def read_values(family: Family) -> dict[str, float]:
    return {sample.labels.text: sample.value for sample in family.samples}


def test_counters_are_added_up_by_their_labels() -> None:
    (family,) = combine_families([[make_counter(a=1, b=2)], [], [make_counter(b=3, c=4)]])
    assert read_values(family) == {'queue="a"': 1, 'queue="b"': 5, 'queue="c"': 4}


def test_each_gauge_says_how_it_is_combined() -> None:
    def make(value: float) -> list[Family]:
        labels = Labels({})
        return [
            Family(name="busy", kind="gauge", help="", samples=[Sample(labels, value)]),
            Family(
                name="lag",
                kind="gauge",
                help="",
                samples=[Sample(labels, value)],
                aggregation="max",
            ),
            Family(
                name="margin",
                kind="gauge",
                help="",
                samples=[Sample(labels, value)],
                aggregation="min",
            ),
            Family(name="build", kind="info", help="", samples=[Sample(labels, 1)]),
        ]

    combined = combine_families([make(2), make(5), make(3)])
    values = {family.name: family.samples[0].value for family in combined}
    assert values == {"build": 1, "busy": 10, "lag": 5, "margin": 2}


def test_histograms_are_added_up_and_keep_the_latest_exemplars() -> None:
    def make(count: int, at: float) -> Family:
        exemplars = {0: Exemplar(Labels({"job_id": str(count)}), 0.5, at)}
        sample = HistogramSample(Labels({"name": "a"}), [count, 1], 1.5, exemplars)
        return Family(name="seconds", kind="histogram", help="", bounds=(1.0,), histograms=[sample])

    (family,) = combine_families([[make(2, 20.0)], [make(3, 10.0)]])
    (sample,) = family.histograms
    assert (sample.buckets, sample.sum) == ([5, 2], 3.0)
    assert sample.exemplars[0].labels.values == {"job_id": "2"}
    assert 'nimburion_seconds_count{name="a"} 7' in render_openmetrics([family])


def test_the_counts_of_an_ended_process_stay_without_its_gauges_and_exemplars() -> None:
    exemplars = {0: Exemplar(Labels({"job_id": "1"}), 0.5, 1.0)}
    histogram = Family(
        name="seconds",
        kind="histogram",
        help="",
        bounds=(1.0,),
        histograms=[HistogramSample(Labels({}), [1, 0], 0.5, exemplars)],
    )
    gauge = Family(name="busy", kind="gauge", help="", samples=[Sample(Labels({}), 1)])
    kept = select_counts([make_counter(a=1), histogram, gauge])
    assert [family.name for family in kept] == ["jobs", "seconds"]
    assert kept[1].histograms[0].exemplars == {}
