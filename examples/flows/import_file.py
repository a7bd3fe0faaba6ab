"""Import a file in 100 parts: fetch it, count the rows of each part, make a report, send it.

Up to five percent of the parts may fail. With more, the import has failed and an alert is sent.

    python import_file.py https://example.com/f.csv
    nimburion worker import_file:processor
"""

from __future__ import annotations

import asyncio
import sys

from nimburion import Flow, Processor, config

PARTS = 100

processor = Processor.from_config(config.load())
sent: list[str] = []
"""The mails that this process has sent."""


@processor.job(queue="imports")
async def fetch(url: str) -> str:
    """Fetch the file, and return where it is."""
    return f"/srv/imports/{url.rpartition('/')[2]}"


@processor.job(queue="imports", max_retries=2, retry_backoff=0.01)
async def count_rows(path: str, part: int) -> int:
    """Return the number of rows of one part."""
    if "broken" in path and part % 10 == 0:
        raise ValueError(f"{path}: part {part} is damaged")
    return 1_000 + part


@processor.job(queue="imports")
def make_report(counts: list[int]) -> str:
    """Return the text of the report."""
    return f"{sum(counts)} rows in {len(counts)} of {PARTS} parts"


@processor.job(queue="mail")
async def send_mail(to: str, text: str) -> None:
    """Send a mail."""
    sent.append(f"{to}: {text}")


def make_import(url: str) -> Flow:
    """Return the flow that imports a file."""
    alert = send_mail.job("ops@example.com", f"the import of {url} failed")
    flow = Flow("import_file", on_failure=alert)
    file = flow.add(fetch.job(url))
    parts = flow.add_all(
        (count_rows.job(file.result, part) for part in range(PARTS)),
        name="parts",
        max_failed="5%",
    )
    report = flow.add(make_report.job(parts.results))
    flow.add(send_mail.job("team@example.com", report.result))
    return flow


async def start(url: str, flow_id: str) -> str:
    """Start the import of a file. A repeat with the same id changes nothing."""
    async with processor:
        return await processor.enqueue_flow(make_import(url), id=flow_id)


if __name__ == "__main__":
    address = sys.argv[1]
    asyncio.run(start(address, f"import-{address.rpartition('/')[2]}"))
