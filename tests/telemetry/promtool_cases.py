"""What promtool says of our page and our alert rules. `python3 dev.py alerts` runs these.

They need promtool, a Debian package: `NB_TEST_PROMTOOL` names the binary, else the one on PATH.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nimburion.telemetry
from nimburion import job
from nimburion.jobs import Processor
from nimburion.telemetry.backend_metrics import BackendMetrics

FILES = Path(nimburion.telemetry.__file__).parent / "files"
PROMTOOL = os.environ.get("NB_TEST_PROMTOOL", "promtool")


def find_complaints(*arguments: str, text: str = "") -> str:
    """Run promtool in the folder of the rules; return what it says if it complains, else ''."""
    done = subprocess.run(
        [PROMTOOL, *arguments], cwd=FILES, input=text, text=True, capture_output=True, check=False
    )
    return done.stdout + done.stderr if done.returncode or done.stderr.strip() else ""


def test_the_alert_rules_are_valid() -> None:
    assert find_complaints("check", "rules", "alerts.yaml") == ""


def test_the_alerts_fire_when_they_should() -> None:
    assert find_complaints("test", "rules", "alerts_test.yaml") == ""


DRAIN = """\
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'nimburion_jobs_queue_size{{queue="shrinks"}}', values: '600x20'}}
      - {{series: 'nimburion_jobs_processed_total{{queue="shrinks",outcome="completed"}}', values: '0+180x20'}}
      - {{series: 'nimburion_jobs_processed_total{{queue="shrinks",outcome="retried"}}', values: '0+900x20'}}
      - {{series: 'nimburion_jobs_enqueued_total{{queue="shrinks"}}', values: '0+60x20'}}
      - {{series: 'nimburion_jobs_queue_size{{queue="grows"}}', values: '600x20'}}
      - {{series: 'nimburion_jobs_processed_total{{queue="grows",outcome="completed"}}', values: '0+60x20'}}
      - {{series: 'nimburion_jobs_enqueued_total{{queue="grows"}}', values: '0+180x20'}}
      - {{series: 'nimburion_jobs_queue_size{{queue="last"}}', values: '60x20'}}
      - {{series: 'nimburion_jobs_processed_total{{queue="last",outcome="failed"}}', values: '0+60x20'}}
    promql_expr_test:
      - expr: {expression}
        eval_time: 10m
        exp_samples:
          - {{labels: '{{queue="shrinks"}}', value: 300}}
          - {{labels: '{{queue="last"}}', value: 60}}
"""  # noqa: E501 - lines of YAML


def test_the_time_to_drain_agrees_with_both_rates(tmp_path: Path) -> None:
    panels = json.loads((FILES / "grafana.json").read_text(encoding="utf-8"))["panels"]
    (panel,) = (one for one in panels if one["title"] == "Time to drain")
    expression = panel["targets"][0]["expr"].replace("$queue", ".*")
    file = tmp_path / "drain.yaml"
    file.write_text(DRAIN.format(expression=json.dumps(expression)), encoding="utf-8")
    assert find_complaints("test", "rules", str(file)) == ""


async def test_the_page_is_valid() -> None:
    @job(name="send", queue="mail", concurrency=3, max_retries=0)
    async def send(number: int) -> None:
        if number == 1:
            raise ValueError(number)

    processor = Processor("memory://")
    processor.register(send)
    async with processor:
        await processor.start()
        backend_metrics = BackendMetrics(processor.backend)
        processor.metrics.add_source(backend_metrics)
        ids = [await processor.enqueue(send.job(number)) for number in range(3)]
        await processor.enqueue(send.job(4), after=60)
        for job_id in (ids[0], ids[2]):
            await processor.wait(job_id, timeout=10.0)
        await backend_metrics.refresh()
        await backend_metrics.refresh_slow_readings()
        page, _ = processor.metrics.render()
    assert 'nimburion_jobs_processed_total{queue="mail",name="send",outcome="completed"}' in page
    assert find_complaints("check", "metrics", text=page) == ""
