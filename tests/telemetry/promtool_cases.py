"""What promtool says of our page and our alert rules. `python3 dev.py alerts` runs these.

They need promtool, a Debian package: `NB_TEST_PROMTOOL` names the binary, else the one on PATH.
"""

from __future__ import annotations

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
