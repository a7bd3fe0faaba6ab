"""The jobs of the demo, as an application would write them.

The workers run them by `nimburion worker nimburion.cli.demo.work:make_processor`.
"""

from __future__ import annotations

import asyncio
import http.client
import smtplib
from email.message import EmailMessage
from pathlib import Path

from nimburion import config
from nimburion.cli.demo import orders, png
from nimburion.jobs import Context, Job, PermanentError, Processor

LOOPBACK = "127.0.0.1"


class MakeThumbnail(Job, name="make_thumbnail", queue="images", concurrency=4):
    """Shrink a picture. CPU work in a plain `def`: it runs on a thread, not on the event loop."""

    source: str
    target: str
    factor: int = 6

    def process(self, ctx: Context) -> str:
        picture = png.read_png(Path(self.source))
        ctx.progress(0.2, "read")
        small = png.shrunk(picture, self.factor)
        png.write_png(Path(self.target), small)
        return f"{small.width}x{small.height}"


class SalesReport(Job, name="sales_report", queue="reports"):
    """Sum a file of orders into another one. The result is kept with the job."""

    orders: str
    target: str

    def process(self, ctx: Context) -> dict[str, float]:
        ctx.progress(0.1, "summing")
        cents = orders.write_report(Path(self.orders), Path(self.target))
        return {"turnover": cents / 100}


class CallWebhook(Job, name="call_webhook", queue="web", max_retries=5, retry_backoff=0.3):
    """Tell a web service of an order. 503 comes and goes: retried. 410 will not: permanent."""

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
    """Send a real message by SMTP. The job's id is the message's: a repeat can be told."""

    port: int
    to: str
    subject: str

    def process(self, ctx: Context) -> None:
        message = EmailMessage()
        message["From"], message["To"] = "demo@example.com", self.to
        message["Subject"] = self.subject
        message["Message-ID"] = f"<{ctx.job_id}@example.com>"
        message.set_content(f"Attempt {ctx.attempt} of job {ctx.job_id}.\n")
        with smtplib.SMTP(LOOPBACK, self.port, local_hostname="localhost", timeout=5) as server:
            server.send_message(message)


class ExportArchive(Job, name="export_archive", queue="default", max_retries=0):
    """Something slow, in steps, that says how far it is. A killed worker repeats it whole."""

    number: int
    steps: int = 10

    async def process(self, ctx: Context) -> None:
        for step in range(1, self.steps + 1):
            await asyncio.sleep(0.25)
            ctx.progress(step / self.steps, f"part {step}")


class WriteNote(Job, name="write_note", queue="notes"):
    """Append a line; the order of the lines is the order of the priorities."""

    file: str
    text: str

    async def process(self, ctx: Context) -> None:
        with Path(self.file).open("a", encoding="utf-8") as file:  # noqa: ASYNC230 (one short line)
            file.write(f"priority {ctx.priority}: {self.text}\n")


JOBS = (MakeThumbnail, SalesReport, CallWebhook, SendEmail, ExportArchive, WriteNote)


def make_processor() -> Processor:
    """A processor as configured, with every job of the demo."""
    processor = Processor.from_config(config.load())
    processor.register(*JOBS)
    return processor
