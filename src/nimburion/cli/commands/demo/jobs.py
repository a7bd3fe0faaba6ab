"""The jobs of the demo, as an application would write them.

The workers run them by `nimburion worker nimburion.cli.commands.demo.jobs:make_processor`.
"""

from __future__ import annotations

import asyncio
import mailbox
from email.message import EmailMessage
from pathlib import Path

from nimburion import config
from nimburion.core.errors import PermanentError
from nimburion.jobs import Context, Job, Processor


class CallPartner(Job, name="call_partner", queue="web", max_retries=5, retry_backoff=0.3):
    """Notify a partner of an order, on a thread, as a plain `def` runs.

    The partner is made up. Its first answers are 503, which is temporary and retried, or it answers
    410, which is permanent, until a file exists.
    """

    path: str
    failures: int = 0
    repaired: str = ""

    def process(self, ctx: Context) -> int:
        if self.repaired and not Path(self.repaired).exists():
            raise PermanentError(f"{self.path} answered 410 Gone")
        if ctx.attempt <= self.failures:
            raise ConnectionError(f"{self.path} answered 503")
        return 200


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


JOBS = (CallPartner, SendEmail, ExportArchive)


def make_processor() -> Processor:
    """Return a processor with the configured settings and all jobs of the demo."""
    processor = Processor.from_config(config.load())
    processor.register(*JOBS)
    return processor
