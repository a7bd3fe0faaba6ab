"""List workers, and send commands to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from nimburion.actions.operator import SubjectActions
from nimburion.core.errors import WorkerNotFound
from nimburion.core.session import SessionInfo, WorkerCommand

Command = Literal["quiet", "resume", "stop"]
"""`quiet`: start no further job. `resume`: start jobs again. `stop`: stop as on SIGTERM."""


class WorkerActions(SubjectActions):
    """List workers, and send commands to them: `processor.workers`.

    ```python
    async for worker in processor.workers.list():
        await processor.workers.stop(worker.id)
    ```

    A worker is named by the id of its session. It gets a command with a heartbeat, at once. The
    audit record has the `reason`.
    `WorkerNotFound` is raised if no session has the id.
    """

    async def list(self) -> AsyncIterator[SessionInfo]:
        """Iterate over the sessions of workers. Use it with `async for`."""
        for session in await self._backend.reads.list_sessions():
            yield session

    async def quiet(self, session: str, *, reason: str = "") -> None:
        """Let a worker start no further job. Its running jobs continue."""
        await self._send(session, "quiet", WorkerCommand.QUIET, reason)

    async def resume(self, session: str, *, reason: str = "") -> None:
        """Let a quiet worker start jobs again."""
        await self._send(session, "resume", None, reason)

    async def stop(self, session: str, *, reason: str = "") -> None:
        """Stop a worker as SIGTERM does: running jobs have the grace time to end."""
        await self._send(session, "stop", WorkerCommand.STOP, reason)

    async def _send(
        self, session: str, command: Command, stored: WorkerCommand | None, reason: str
    ) -> None:
        async with self._operator.record(
            self._backend, f"worker.{command}", session, reason=reason
        ) as change:
            if not await self._backend.maintenance.send_command(session, stored):
                raise WorkerNotFound(session)
            change.count = 1


async def send_command(
    workers: WorkerActions, session: str, command: Command, *, reason: str = ""
) -> None:
    """Send a command by its name. Raises `WorkerNotFound`."""
    send = {"quiet": workers.quiet, "resume": workers.resume, "stop": workers.stop}[command]
    await send(session, reason=reason)
