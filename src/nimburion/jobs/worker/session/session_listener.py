"""Listens for cancel requests and commands, so that a worker learns them at once.

They come with the reply of a heartbeat, and the regular interval is a quarter of the session TTL.
"""

from __future__ import annotations

from collections.abc import Callable

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendError
from nimburion.core.service import Service, wait_for_first
from nimburion.core.timing.clock import Clock

_PAUSE_AFTER_ERROR = 1.0
"""Seconds until the next call after the backend did not answer."""


class SessionListener(Service):
    """Calls `send_heartbeat` whenever the backend notifies the session."""

    def __init__(
        self,
        backend: Backend,
        session_id: str,
        clock: Clock,
        send_heartbeat: Callable[[], None],
    ) -> None:
        super().__init__(clock)
        self._backend = backend
        self._session_id = session_id
        self._send_heartbeat = send_heartbeat

    async def run(self) -> None:
        while not self.stopping.is_set():
            await wait_for_first(self._wait_and_send(), self.stopping.wait())

    async def _wait_and_send(self) -> None:
        try:
            while True:
                await self._backend.consuming.wait_for_session(self._session_id)
                self._send_heartbeat()
        except BackendError as error:
            self.failure: BaseException | None = error
            await self.clock.sleep(_PAUSE_AFTER_ERROR)
