"""Check and create an outbox that the configuration names, for commands without a processor."""

from __future__ import annotations

import asyncio

from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.errors import UnusableConnection
from nimburion.core.text.redaction import redact_url
from nimburion.jobs.outbox.outbox import Outbox

_SLOW_SECONDS = 60.0
"""The age of the oldest job from which the lag is a warning."""


async def check_outbox(url: str, timeout: float) -> CheckResult:
    """Report how many jobs wait in the outbox, and for how long."""
    try:
        async with asyncio.timeout(timeout):
            lag = await Outbox(url).read_lag()
    except UnusableConnection as error:
        return CheckResult("outbox", "error", str(error), "nimburion migrate up creates it")
    except Exception as error:  # noqa: BLE001 (of any driver)
        text = " ".join(str(error).split()) or type(error).__name__
        return CheckResult(
            "outbox", "error", f"{redact_url(url)}: {text}", "correct jobs.outbox_url"
        )
    if not lag.jobs:
        return CheckResult("outbox", "good", "no job waits for its relay")
    text = f"{lag.jobs} {'job waits' if lag.jobs == 1 else 'jobs wait'}, the oldest for "
    text += f"{lag.seconds:.0f} s"
    if lag.seconds < _SLOW_SECONDS:
        return CheckResult("outbox", "good", text)
    advice = "start a worker with this outbox; the log of a worker says why it cannot relay a job"
    return CheckResult("outbox", "warning", text, advice)


async def migrate_outbox(url: str, *, dry_run: bool = False) -> list[str]:
    """Create the table of the outbox if it is missing. Return the step that is or would be done."""
    outbox = Outbox(url)
    try:
        await outbox.read_lag()
    except UnusableConnection:
        if not dry_run:
            await outbox.create_table()
        return [f"table {outbox.table} in {redact_url(url)}"]
    return []
