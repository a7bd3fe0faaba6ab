"""Answers requests for the stacks of running handlers.

The heartbeat does this, on its own thread and connection, so that a worker whose event loop is
blocked answers too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendError
from nimburion.core.timing.clock import Clock

if TYPE_CHECKING:
    from nimburion.core.stacks import Place

_log = logging.getLogger("nimburion.worker")

ReadStack = Callable[[str], Awaitable["tuple[Place, str] | None"]]
"""Returns where the handler of a job runs, and its stack; None if the job does not run here."""


class StackRequests:
    """The requests to one session. `polls`: the backend cannot notify it."""

    def __init__(
        self, session_id: str, clock: Clock, read_stack: ReadStack, *, polls: bool
    ) -> None:
        self._session_id = session_id
        self._clock = clock
        self._read_stack = read_stack
        self._polls = polls
        self._answered_at: dict[str, float] = {}
        """When the request for each job was answered, on the monotonic clock."""
        self.is_loop_blocked: bool = False
        """Whether the worker's event loop runs nothing, so that it notices no notification."""

    def must_look(self, *, notified: bool) -> bool:
        """Return whether there may be something to do. A read without a reason would cost every
        heartbeat of every worker.
        """
        return notified or self._polls or self.is_loop_blocked or bool(self._answered_at)

    async def answer(self, backend: Backend, timeout: float) -> None:
        """Answer the requests, and delete answers that are too old. A failure changes nothing."""
        try:
            async with asyncio.timeout(timeout):
                await self._answer(backend)
        except (BackendError, TimeoutError) as error:
            _log.debug("a request for a stack was not answered: %s", error)
        except Exception:  # noqa: BLE001 - the heartbeat must continue
            _log.exception("a request for a stack failed")

    async def _answer(self, backend: Backend) -> None:
        from nimburion.core.stacks import (  # only where a stack is requested
            KEEP,
            answer_stack_request,
            delete_old_stacks,
            list_stack_requests,
        )

        for request in await list_stack_requests(backend, self._session_id):
            found = await self._read_stack(request.job_id)
            if found is not None:
                await answer_stack_request(backend, request, self._session_id, *found)
                self._answered_at[request.job_id] = self._clock.monotonic()
        now = self._clock.monotonic()
        if any(now > at + KEEP for at in self._answered_at.values()):
            await delete_old_stacks(backend)  # not by id: another worker may have a later request
            for job_id, at in list(self._answered_at.items()):
                if now > at + KEEP:
                    del self._answered_at[job_id]
