"""The alert rules and the Grafana dashboard name metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

import nimburion.telemetry
from benchmarks.monitoring.comparison import (
    EventCounts,
    Expectations,
    Fleet,
    Prometheus,
    Series,
)
from nimburion.backends.memory import MemoryBackend
from nimburion.core.job import NewJob
from nimburion.core.limits import LimitRule
from nimburion.core.session import Session, Vitals
from nimburion.jobs import Processor
from nimburion.telemetry.backend_metrics import BackendMetrics
from nimburion.telemetry.worker_metrics import WorkerMetrics
from nimburion.testing.contract.harness import make_limits

FILES = Path(nimburion.telemetry.__file__).parent / "files"
_SUFFIX = re.compile("_(total|bucket|sum|count|info)$")


async def list_metric_names() -> set[str]:
    """Return the names of all families, without their suffixes."""
    backend = MemoryBackend()
    await backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    limits = make_limits({"send": 1}, keyed={"send": {"customer": LimitRule(concurrency=1)}})
    await backend.consuming.open_session(Session(id="0" * 32, names=("send",), limits=limits))
    backend_metrics = BackendMetrics(backend)
    await backend_metrics.refresh()
    await backend_metrics.refresh_slow_readings()
    processor = Processor(backend)
    processor.metrics.add_source(backend_metrics)
    vitals = Vitals(slots=1, rss=1, lease_margin=1.0)
    processor.metrics.add_source(WorkerMetrics(lambda: vitals))
    return {f"nimburion_{family.name}" for family in processor.metrics.collect()}


def find_names(expression: str) -> set[str]:
    return {_SUFFIX.sub("", name) for name in re.findall(r"\bnimburion_\w+", expression)}


async def test_alert_rules_name_existing_metrics() -> None:
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(expressions) >= 10
    known = await list_metric_names()
    for expression in expressions:
        assert find_names(expression) <= known, expression
        assert find_names(expression)


def test_every_alert_has_a_test() -> None:
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))
    tests = yaml.safe_load((FILES / "alerts_test.yaml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    fired = {
        case["alertname"]
        for group in tests["tests"]
        for case in group["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == alerts


def test_the_comparison_with_a_log_knows_each_panel_and_each_alert() -> None:
    class Silent(Prometheus):
        def query(self, expression: str, at: float) -> list[Series]:
            return []

    fleet = Fleet()
    fleet.note_left(0.0)
    expectations = Expectations(Silent(0), EventCounts({}, ""), 1e9, 75.0, fleet)
    panels = json.loads((FILES / "grafana.json").read_text(encoding="utf-8"))["panels"]
    numbered = {
        f"{panel['title']} {number}"
        for panel in panels
        for number, _ in enumerate(panel.get("targets", ()))
    }
    assert set(expectations.list_panels()) == numbered
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    assert set(expectations.list_alerts()) <= {rule["alert"] for rule in group["rules"]}


async def test_the_dashboard_names_existing_metrics() -> None:
    dashboard = json.loads((FILES / "grafana.json").read_text(encoding="utf-8"))
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    assert len(expressions) >= 20
    known = await list_metric_names()
    for expression in expressions:
        assert find_names(expression) <= known, expression
        assert find_names(expression)


def test_limits_by_key_are_in_the_rules_and_on_the_dashboard() -> None:
    for file in ("alerts.yaml", "grafana.json"):
        assert "nimburion_limit_keys_parked" in (FILES / file).read_text(encoding="utf-8"), file


def test_the_dashboard_has_no_panel_twice_and_none_over_another() -> None:
    panels = json.loads((FILES / "grafana.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
