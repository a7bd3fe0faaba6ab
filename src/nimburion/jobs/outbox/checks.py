"""Check and create an outbox that the configuration names, for commands without a processor."""

from __future__ import annotations

import asyncio

from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.errors import BackendUnavailable, UnusableConnection
from nimburion.core.settings import Settings
from nimburion.core.text.redaction import redact_url
from nimburion.jobs.outbox.outbox import Outbox, describe_error, get_rows

TIMEOUT = 20.0
"""Seconds that the database of an outbox has to answer a command."""

_SLOW_SECONDS = 60.0
"""The age of the oldest job from which the lag is a warning."""


_BRIEF_SECONDS = 3600.0
"""The setting `keep_completed` up to which the outbox has a warning."""
_FEW_JOBS = 1_000
"""The setting `keep_completed_max` up to which the outbox has a warning."""


async def check_outbox(url: str, timeout: float) -> CheckResult:
    """Report how many jobs wait in the outbox, and for how long."""
    try:
        async with asyncio.timeout(timeout):
            lag = await Outbox(url).read_lag()
    except UnusableConnection as error:
        return CheckResult("outbox", "error", str(error), "nimburion migrate up creates it")
    except Exception as error:  # noqa: BLE001 (of any driver)
        text = f"{redact_url(url)}: {describe_error(error)}"
        return CheckResult("outbox", "error", text, "correct jobs.outbox_url")
    if not lag.jobs:
        return CheckResult("outbox", "good", "no job waits for its relay")
    text = f"{lag.jobs} {'job waits' if lag.jobs == 1 else 'jobs wait'}, the oldest for "
    text += f"{lag.seconds:.0f} s"
    if lag.seconds < _SLOW_SECONDS:
        return CheckResult("outbox", "good", text)
    advice = "start a worker with this outbox; the log of a worker says why it cannot relay a job"
    return CheckResult("outbox", "warning", text, advice)


def check_kept_records(settings: Settings) -> CheckResult | None:
    """Return a warning if the records of completed jobs are kept too briefly for an outbox.

    A job that is relayed a second time runs again if its record is gone.
    """
    seconds, jobs = settings.keep_completed, settings.keep_completed_max
    if seconds is not None and seconds <= _BRIEF_SECONDS:
        name, value, least = "keep_completed", f"{seconds:g} s", f"{_BRIEF_SECONDS:g} s"
    elif jobs is not None and jobs <= _FEW_JOBS:
        name, value, least = "keep_completed_max", f"{jobs} jobs", f"{_FEW_JOBS} jobs"
    else:
        return None
    return CheckResult(
        "outbox",
        "warning",
        f"{name} is {value}: a job that is relayed twice may run twice",
        f"set {name} to more than {least}",
    )


async def migrate_outbox(url: str, timeout: float, *, dry_run: bool = False) -> list[str]:
    """Create the table of the outbox if it is missing. Return the step that is or would be done.

    Raises:
        BackendUnavailable: the database cannot be used, or does not answer within `timeout` s.
    """
    outbox = Outbox(url)
    try:
        async with asyncio.timeout(timeout):
            if await _has_table(outbox):
                return []
            if not dry_run:
                await outbox.create_table()
    except Exception as error:
        raise _make_unavailable(url, error) from error
    return [f"table {outbox.table} in {redact_url(url)}"]


async def _has_table(outbox: Outbox) -> bool:
    try:
        await outbox.read_lag()
    except UnusableConnection:
        return False
    return True


async def is_in_outbox(url: str, job_id: str, timeout: float) -> bool:
    """Return whether a job waits in the outbox.

    Raises:
        BackendUnavailable: the database cannot be used, or does not answer within `timeout` s.
    """
    rows = get_rows(Outbox(url))
    try:
        async with asyncio.timeout(timeout), rows.open_database() as database:
            return job_id in await rows.find_waiting(database, [job_id])
    except (BackendUnavailable, TimeoutError) as error:
        raise _make_unavailable(url, error.__cause__ or error) from error


def _make_unavailable(url: str, error: BaseException) -> BackendUnavailable:
    return BackendUnavailable(
        f"the outbox in {redact_url(url)} cannot be used: {describe_error(error)}; correct "
        "jobs.outbox_url, or start its database",
        outcome="unknown",
    )
