"""Import a file whose number of parts is known only when it has been fetched.

python import_in_code.py https://example.com/f.csv
nimburion worker import_in_code:processor
"""

from __future__ import annotations

import asyncio
import sys

from nimburion import DurableContext, Processor, config

processor = Processor.from_config(config.load())
sent: list[str] = []
"""The mails that this process has sent."""


@processor.job(queue="imports")
async def fetch(url: str) -> str:
    """Fetch the file, and return where it is."""
    return f"/srv/imports/{url.rpartition('/')[2]}"


async def split(path: str) -> list[int]:
    """Return the numbers of the parts of a file."""
    return list(range(len(path)))


@processor.job(queue="imports")
async def count_rows(path: str, part: int) -> int:
    """Return the number of rows of one part."""
    return 1_000 + part if path else 0


@processor.job(queue="mail")
async def send_mail(to: str, text: str) -> None:
    """Send a mail."""
    sent.append(f"{to}: {text}")


@processor.job(queue="imports")
async def import_file(ctx: DurableContext, url: str) -> int:
    """Return the number of rows of a file."""
    path = await ctx.run(fetch.job(url))
    parts = await ctx.step(split, path)
    counts = await ctx.run_all(count_rows.job(path, part) for part in parts)
    rows = sum(counts)
    await ctx.run(send_mail.job("team@example.com", f"{rows} rows in {len(parts)} parts"))
    return rows


async def start(url: str) -> str:
    """Start the import of a file. A repeat changes nothing."""
    async with processor:
        name = url.rpartition("/")[2]
        return await processor.enqueue(import_file.job(url), id=f"import-{name}")


if __name__ == "__main__":
    asyncio.run(start(sys.argv[1]))
