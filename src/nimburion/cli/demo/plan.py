"""What is enqueued: a bit of everything that nimburion does."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec

from nimburion.cli.demo import orders, png
from nimburion.cli.demo.services import GONE_PATH
from nimburion.cli.demo.work import (
    CallWebhook,
    ExportArchive,
    MakeThumbnail,
    SalesReport,
    SendEmail,
    WriteNote,
)
from nimburion.jobs import Priority, Processor

PICTURES, ORDERS, WEBHOOKS, EMAILS, EXPORTS = 12, 20_000, 10, 5, 4
DELAY = 4.0


class Plan(msgspec.Struct):
    """Where things are, and the ids of all that was enqueued."""

    folder: Path
    web_port: int
    mail_port: int
    ids: set[str] = msgspec.field(default_factory=set)
    gone: str = ""
    """The webhook whose path is gone until the service is repaired."""
    duplicate_is_same: bool = False


def prepare_files(folder: Path, random: Random) -> None:
    """Pictures and orders, made anew."""
    for name in ("pictures", "thumbnails", "mail"):
        (folder / name).mkdir(parents=True)
    for number in range(1, PICTURES + 1):
        picture = png.drawn(420, 282, random)
        png.write_png(folder / "pictures" / f"{number:02}.png", picture)
    orders.write_orders(folder / "orders.csv", ORDERS, random)


async def enqueue_all(processor: Processor, plan: Plan) -> None:
    """Enqueue everything, in one go and one by one."""
    await enqueue_notes(processor, plan)
    await enqueue_exports(processor, plan)
    await enqueue_pictures_and_report(processor, plan)
    await enqueue_webhooks(processor, plan)
    await enqueue_emails(processor, plan)


async def enqueue_notes(processor: Processor, plan: Plan) -> None:
    """Three in the wrong order: priority puts them right."""
    file = str(plan.folder / "notes.txt")
    for text, priority in (("last", Priority.LOW), ("second", Priority.NORMAL)):
        note = WriteNote(file=file, text=text)
        plan.ids.add(await processor.enqueue_with_priority(note, priority))
    first = WriteNote(file=file, text="first")
    plan.ids.add(await processor.enqueue(first, priority=Priority.HIGHEST))


async def enqueue_exports(processor: Processor, plan: Plan) -> None:
    """Slow ones, for the crash, and one that is cancelled before its time comes."""
    exports = [ExportArchive(number=number) for number in range(1, EXPORTS + 1)]
    plan.ids.update(await processor.enqueue_many(exports))
    later = await processor.enqueue_after(ExportArchive(number=0), 3600)
    plan.ids.add(later)
    await processor.cancel(later)


async def enqueue_pictures_and_report(processor: Processor, plan: Plan) -> None:
    """Twelve pictures in one call, one report."""
    pictures = sorted((plan.folder / "pictures").iterdir())
    target = plan.folder / "thumbnails"
    plan.ids.update(
        await processor.enqueue_many(
            MakeThumbnail(source=str(picture), target=str(target / picture.name))
            for picture in pictures
        )
    )
    report = SalesReport(
        orders=str(plan.folder / "orders.csv"), target=str(plan.folder / "report.csv")
    )
    plan.ids.add(await processor.enqueue(report))


async def enqueue_webhooks(processor: Processor, plan: Plan) -> None:
    """Calls that fail now and then, and one that fails for good until it is replayed."""
    for number in range(1, WEBHOOKS + 1):
        call = CallWebhook(port=plan.web_port, path=f"/orders/{number}")
        plan.ids.add(await processor.enqueue(call))
    plan.gone = await processor.enqueue(CallWebhook(port=plan.web_port, path=GONE_PATH))
    plan.ids.add(plan.gone)


async def enqueue_emails(processor: Processor, plan: Plan) -> None:
    """Mail: some now, one later, one asked for twice, one that no handler can read."""
    for number in range(1, EMAILS + 1):
        mail = SendEmail(port=plan.mail_port, to=f"user{number}@example.com", subject="Welcome")
        plan.ids.add(await processor.enqueue(mail))
    reminder = SendEmail(port=plan.mail_port, to="user1@example.com", subject="Reminder")
    plan.ids.add(await processor.enqueue_after(reminder, DELAY))
    weekly = SendEmail(port=plan.mail_port, to="all@example.com", subject="Weekly news")
    twice = [
        await processor.enqueue(weekly, unique_key="news-week-31", on_duplicate="existing")
        for _ in range(2)
    ]
    plan.duplicate_is_same = twice[0] == twice[1]
    plan.ids.update(twice)
    broken = {"to": "nobody@example.com", "subject": 7}
    plan.ids.add(await processor.enqueue_raw("send_email", broken, queue="mail"))
