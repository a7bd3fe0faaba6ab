"""The text formats of metrics."""

from __future__ import annotations

from nimburion.telemetry.families import (
    NO_LABELS,
    Exemplar,
    Family,
    HistogramSample,
    Labels,
    Sample,
    render_openmetrics,
    render_prometheus,
)

JOBS = Family(
    name="jobs_enqueued",
    kind="counter",
    help="Jobs stored.",
    samples=[Sample(Labels({"queue": "mail", "name": "send"}), 3), Sample(NO_LABELS, 2.5)],
)
WAITS = Family(
    name="jobs_wait_seconds",
    kind="histogram",
    help="Seconds.",
    bounds=(0.1, 1.0),
    histograms=[
        HistogramSample(
            Labels({"queue": "mail"}),
            [1, 0, 2],
            7.25,
            {2: Exemplar(Labels({"trace_id": "ab", "job_id": "j"}), 4.5, 1_750_000_000.0)},
        )
    ],
)


def test_prometheus_text() -> None:
    assert render_prometheus([JOBS, WAITS]) == (
        "# HELP nimburion_jobs_enqueued_total Jobs stored.\n"
        "# TYPE nimburion_jobs_enqueued_total counter\n"
        'nimburion_jobs_enqueued_total{queue="mail",name="send"} 3\n'
        "nimburion_jobs_enqueued_total 2.5\n"
        "# HELP nimburion_jobs_wait_seconds Seconds.\n"
        "# TYPE nimburion_jobs_wait_seconds histogram\n"
        'nimburion_jobs_wait_seconds_bucket{queue="mail",le="0.1"} 1\n'
        'nimburion_jobs_wait_seconds_bucket{queue="mail",le="1.0"} 1\n'
        'nimburion_jobs_wait_seconds_bucket{queue="mail",le="+Inf"} 3\n'
        'nimburion_jobs_wait_seconds_sum{queue="mail"} 7.25\n'
        'nimburion_jobs_wait_seconds_count{queue="mail"} 3\n'
    )


def test_openmetrics_text_has_exemplars_and_an_end() -> None:
    text = render_openmetrics([JOBS, WAITS], "app")
    assert text.endswith("# EOF\n")
    assert "# TYPE app_jobs_enqueued counter\n" in text
    assert 'app_jobs_enqueued_total{queue="mail",name="send"} 3\n' in text
    assert (
        'app_jobs_wait_seconds_bucket{queue="mail",le="+Inf"} 3 # {trace_id="ab",job_id="j"} '
        "4.500000 1750000000.000\n"
    ) in text


def test_label_values_are_escaped() -> None:
    assert Labels({"queue": 'a"b\\c\nd'}).text == 'queue="a\\"b\\\\c\\nd"'


def test_a_histogram_without_labels() -> None:
    family = Family(
        name="x",
        kind="histogram",
        help="x",
        bounds=(1.0,),
        histograms=[HistogramSample(NO_LABELS, [1, 1], 3.0)],
    )
    assert render_prometheus([family]).splitlines()[2:] == [
        'nimburion_x_bucket{le="1.0"} 1',
        'nimburion_x_bucket{le="+Inf"} 2',
        "nimburion_x_sum 3.0",
        "nimburion_x_count 2",
    ]
