"""Send commands to workers."""

from __future__ import annotations

from typing import Literal

from nimburion.actions.operator import Operator
from nimburion.core.backend import Backend
from nimburion.core.errors import WorkerNotFound
from nimburion.core.session import WorkerCommand

Command = Literal["quiet", "resume", "stop"]
"""`quiet`: start no further job. `resume`: start jobs again. `stop`: stop as on SIGTERM."""


class WorkerActions:
    """Send commands to workers: `processor.workers`."""

    def __init__(self, backend: Backend, operator: Operator) -> None:
        self._backend = backend
        self._operator = operator

    async def send(self, session: str, command: Command) -> None:
        """Send a command to the worker with this session, which it gets with a heartbeat at once.

        Raises `WorkerNotFound`.
        """
        stored = None if command == "resume" else WorkerCommand(command)
        async with self._operator.record(self._backend, f"worker.{command}", session) as change:
            if not await self._backend.maintenance.send_command(session, stored):
                raise WorkerNotFound(session)
            change.count = 1
