"""`python -m website.top_picture`: record `nimburion top` while two workers run jobs."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from rich.segment import Segment
from rich.style import Style

from nimburion.cli.commands.top import format_view, read_overview
from nimburion.jobs import Processor
from website.terminal_picture import FRAME_SECONDS, Frame, save_picture

HOST = "host-1"
"""Stands for the name of this machine."""
SECONDS = 30
FAILING = 0.1
"""The share of the webhooks that fail."""
APPLICATION = """
import asyncio

from nimburion import Processor

processor = Processor("sqlite:///shop.db", concurrency=10)


@processor.job(queue="mail")
async def send_email(seconds: float) -> None:
    await asyncio.sleep(seconds)


@processor.job(queue="images", concurrency=3)
async def thumbnail(seconds: float) -> None:
    await asyncio.sleep(seconds)


@processor.job(queue="hooks", max_retries=2, retry_backoff=8)
async def call_webhook(seconds: float, fails: bool) -> None:
    await asyncio.sleep(seconds)
    if fails:
        raise ConnectionError("503")
"""


async def record(folder: Path) -> list[Frame]:
    """Run an application in a folder, and return what `top` shows meanwhile."""
    (folder / "shop.py").write_text(APPLICATION, encoding="utf-8")
    random = Random(1)
    frames: list[Frame] = []
    async with (
        Processor(f"sqlite:///{folder / 'shop.db'}") as processor,
        start_worker(folder),
        start_worker(folder),
    ):
        for second in range(SECONDS):
            await enqueue_some(processor, random)
            view = format_view(await read_overview(processor.backend))
            lines = view.replace(f"{folder}/", "").replace(socket.gethostname(), HOST).splitlines()
            drawn = [draw_line(line) for line in lines]
            frames.append(Frame(second * FRAME_SECONDS, drawn))
            await asyncio.sleep(1)
    return frames


async def enqueue_some(processor: Processor, random: Random) -> None:
    """Enqueue the jobs of one second."""
    for _ in range(random.randint(20, 40)):
        await processor.enqueue_raw(
            "send_email", {"seconds": random.uniform(0.05, 0.3)}, queue="mail"
        )
    for _ in range(random.randint(2, 6)):
        await processor.enqueue_raw(
            "thumbnail", {"seconds": random.uniform(0.3, 1.2)}, queue="images"
        )
    for _ in range(random.randint(5, 10)):
        fails = random.random() < FAILING
        await processor.enqueue_raw(
            "call_webhook", {"seconds": random.uniform(0.1, 0.4), "fails": fails}, queue="hooks"
        )


@asynccontextmanager
async def start_worker(folder: Path) -> AsyncIterator[None]:
    """Run a worker of the application until the block ends."""
    command = (
        sys.executable,
        "-m",
        "nimburion",
        "worker",
        "shop:processor",
        "--log-level",
        "error",
    )
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def draw_line(line: str) -> list[Segment]:
    """Return a line of the view as it is drawn: the headers of the tables are dim."""
    is_header = line.startswith(("QUEUE ", "WORKER "))
    return [Segment(line, Style(dim=True) if is_header else None)]


def main() -> None:
    """Run the application and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        frames = asyncio.run(record(Path(name)))
    title = "nimburion top: queues with their rates, waiting times and failures, and the workers."
    save_picture("top.svg", frames, title, "nimburion top")


if __name__ == "__main__":
    main()
