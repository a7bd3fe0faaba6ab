"""The list of running jobs."""

from __future__ import annotations

from typing import Any

from nimburion.core.diagnosis.running_jobs import list_running_jobs
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.queries import Page
from nimburion.core.session import Session
from tests.overridden import OverridableBackend

SESSION = "a" * 32


class ShortSearches(OverridableBackend):
    """A memory backend whose searches end after two records."""

    async def list_jobs(self, *arguments: Any, **options: Any) -> Page:
        return await super().list_jobs(*arguments, **options | {"budget": 2})


async def test_a_search_that_ends_early_goes_on_until_it_finds_a_running_job() -> None:
    backend = ShortSearches()
    queues = ("mail", "mail", "other", "other", "other")
    jobs = [NewJob(f"j{n}", "send", queue, b"{}") for n, queue in enumerate(queues)]
    await backend.producing.enqueue(jobs)
    await backend.consuming.open_session(Session(id=SESSION, queues=("mail", "other")))
    lanes = (Lane("mail", "send"), Lane("other", "send"))
    await backend.consuming.exchange(SESSION, 1, [], ReserveRequest(5, lanes))
    found = await list_running_jobs(backend, queue="mail")
    assert ([one.job.id for one in found.jobs], found.more) == (["j1"], True)
