"""A program that runs a worker of jobs with three limits, and logs when handlers begin and end.

All workers append to one file, one write a line. A handler writes a line after it has begun and
another before it ends. So handlers that overlap in the file did overlap.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from nimburion.jobs import Context, Job, Limit, Processor

AT_ONCE, OF_A_CUSTOMER = 6, 1
"""The most handlers that run at once: in total, and for one customer."""
PER_SECOND, BURST = 800, 80
"""The rate of one region."""
TTL = 5.0
LOG = "LIMITED_WORKER_LOG"
"""The environment variable that names the file."""


class Call(
    Job,
    name="call",
    limits=[
        Limit(AT_ONCE, name="gateway"),
        Limit(OF_A_CUSTOMER, key="customer"),
        Limit(rate=f"{PER_SECOND}/s", burst=BURST, key="region"),
    ],
):
    """A call for a customer. A deadly one kills its worker on its first attempt."""

    customer: str
    region: str
    deadly: bool = False

    async def process(self, ctx: Context) -> None:
        """Log, let others run for a while, log again."""
        write_line("begin", ctx.job_id, self.customer)
        try:
            for _ in range(50):
                await asyncio.sleep(0)
            if self.deadly and ctx.attempt == 1:
                write_line("killed")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            write_line("end", ctx.job_id, self.customer)


def write_line(*words: str) -> None:
    """Append a line to the file in one write."""
    with Path(os.environ[LOG]).open("ab", buffering=0) as log:
        log.write(f"{os.getpid()} {' '.join(words)}\n".encode())


def make_processor(url: str) -> Processor:
    """Return a processor of `Call`."""
    processor = Processor(url, concurrency=4, session_ttl=TTL)
    processor.register(Call)
    return processor


if __name__ == "__main__":
    asyncio.run(make_processor(sys.argv[1]).run())
