"""The jobs of the demo, as an application would write them.

The workers run them by `nimburion worker nimburion.cli.commands.demo.jobs:make_processor`.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import http.client
import mailbox
from collections import Counter
from email.message import EmailMessage
from pathlib import Path

from nimburion import config
from nimburion.jobs import Context, Job, PermanentError, Processor

LOOPBACK = "127.0.0.1"


class CompressFile(Job, name="compress_file", queue="files", concurrency=4):
    """Compress a file. CPU work in a plain `def`: it runs on a thread, not on the event loop."""

    source: str
    target: str

    def process(self, ctx: Context) -> str:
        content = Path(self.source).read_bytes()
        ctx.progress(0.2, "read")
        compressed = gzip.compress(content)
        Path(self.target).write_bytes(compressed)
        return f"{len(compressed) / len(content):.0%} of its size"


class SalesReport(Job, name="sales_report", queue="reports"):
    """Sum a file of orders by region into another file. The result is kept with the job."""

    orders: str
    target: str

    def process(self, ctx: Context) -> dict[str, float]:
        ctx.progress(0.1, "summing")
        cents: Counter[str] = Counter()
        with Path(self.orders).open(newline="", encoding="utf-8") as orders:
            for row in csv.DictReader(orders):
                cents[row["region"]] += int(row["cents"])
        with Path(self.target).open("w", newline="", encoding="utf-8") as report:
            csv.writer(report).writerows((name, sum_ / 100) for name, sum_ in sorted(cents.items()))
        return {"turnover": cents.total() / 100}


class CallWebhook(Job, name="call_webhook", queue="web", max_retries=5, retry_backoff=0.3):
    """Notify a web service of an order. Status 503 is temporary and retried; 410 is permanent."""

    port: int
    path: str

    def process(self, ctx: Context) -> int:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=5)
        try:
            connection.request("POST", self.path, headers={"X-Job": ctx.job_id})
            status = connection.getresponse().status
        finally:
            connection.close()
        if status == http.client.GONE:
            raise PermanentError(f"{self.path} answered 410 Gone")
        if status != http.client.OK:
            raise ConnectionError(f"{self.path} answered {status}")
        return status


class SendEmail(Job, name="send_email", queue="mail"):
    """Deliver a message to a mailbox. The message id is the job id, which identifies duplicates."""

    mailbox: str
    to: str
    subject: str

    def process(self, ctx: Context) -> None:
        message = EmailMessage()
        message["From"], message["To"] = "demo@example.com", self.to
        message["Subject"] = self.subject
        message["Message-ID"] = f"<{ctx.job_id}@example.com>"
        message.set_content(f"Attempt {ctx.attempt} of job {ctx.job_id}.\n")
        mailbox.Maildir(self.mailbox, create=False).add(message)


class ExportArchive(Job, name="export_archive", queue="default", max_retries=0):
    """Do slow work in steps and report progress. After its worker died, the job starts again."""

    number: int
    steps: int = 10

    async def process(self, ctx: Context) -> None:
        for step in range(1, self.steps + 1):
            await asyncio.sleep(0.25)
            ctx.progress(step / self.steps, f"part {step}")


class WriteNote(Job, name="write_note", queue="notes"):
    """Append a line to a file. The order of the lines shows the order of the priorities."""

    file: str
    text: str

    async def process(self, ctx: Context) -> None:
        with Path(self.file).open("a", encoding="utf-8") as file:  # noqa: ASYNC230 (one short line)
            file.write(f"priority {ctx.priority}: {self.text}\n")


JOBS = (CompressFile, SalesReport, CallWebhook, SendEmail, ExportArchive, WriteNote)


def make_processor() -> Processor:
    """Return a processor with the configured settings and all jobs of the demo."""
    processor = Processor.from_config(config.load())
    processor.register(*JOBS)
    return processor
