"""Run the checks of a backend and of its workers, within a time."""

from __future__ import annotations

import asyncio

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.checks import CheckResult, make_failed_check, make_timeout_check
from nimburion.core.diagnosis.unserved import check_workers
from nimburion.core.errors import NimburionError


async def run_backend_checks(backend: Backend, timeout: float) -> list[CheckResult]:
    """Open the backend if it is not open, and return the results of all its checks.

    If it does not answer within `timeout` seconds, or cannot be opened, the only result says so.
    """
    try:
        async with asyncio.timeout(timeout):
            await backend.open()
            found = await backend.check()
            workers = check_workers(
                await backend.reads.list_queues(), await backend.reads.list_sessions()
            )
    except TimeoutError:
        return [make_timeout_check(timeout)]
    except NimburionError as error:
        return [make_failed_check("answer", error)]
    return [*found, *workers]
