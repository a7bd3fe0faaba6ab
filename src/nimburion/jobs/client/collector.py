"""Validate jobs now and store them later: for callers that wait for a commit."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.core.errors import NotSupported
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, NewJob
from nimburion.jobs.client.client import Client
from nimburion.jobs.options.enqueue_options import NOTHING_PARSED, ParsedOptions


class JobCollector(Client):
    """A client that collects the jobs it is given, in place of storing them.

    Its `enqueue…` methods validate a job and run the enqueue middleware as those of `client` do,
    and return the ids. The client need not be open. `enqueue_collected` stores the jobs.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(
            client.backend,
            settings=client.settings,
            registry=client.registry,
            clock=client.clock,
        )
        self._enqueue_middlewares = client._enqueue_middlewares
        self.collected: list[NewJob] = []
        """The jobs to store. A delay is already a time, so that it does not start anew later."""

    async def _store(
        self,
        jobs: Sequence[NewJob],
        parsed: ParsedOptions,  # noqa: ARG002 (a connection is for the later call)
        all_results: list[Enqueued] | None = None,  # noqa: ARG002 (nothing is known yet)
        flows: Sequence[NewFlow] = (),
    ) -> list[str]:
        if flows:
            raise NotSupported("a flow cannot wait for a commit yet: enqueue it after the commit")
        now = self.clock.now()
        self.collected += [job.fix_due_time(now) for job in jobs]
        return [job.id for job in jobs]

    async def _enqueue_plain(self, job: NewJob) -> str:
        return (await self._store([job], NOTHING_PARSED))[0]


async def enqueue_collected(
    client: Client, jobs: Sequence[NewJob], *, connection: object = None
) -> list[str]:
    """Store collected jobs in one step, without middleware, and return their ids.

    `connection` and the errors are those of `Client.enqueue_many`.
    """
    parsed = NOTHING_PARSED if connection is None else ParsedOptions(connection=connection)
    return await client._store(jobs, parsed)
