"""The dashboard of the demo, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from nimburion.core.settings import Config, ServerSettings, Settings
from nimburion.server import bootstrap


@contextmanager
def serve_dashboard(folder: Path) -> Iterator[str]:
    """Serve the dashboard of the demo's database until the block exits; yield its address."""
    config = Config(
        jobs=Settings(url=f"sqlite:///{folder}/nimburion.db"), server=ServerSettings(port=0)
    )
    thread = DashboardThread(config)
    thread.start()
    try:
        yield f"{thread.wait_for_url()}/dashboard"
    finally:
        thread.stop()


class DashboardThread:
    """An event loop on a thread that serves the dashboard."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, name="demo-dashboard")

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def wait_for_url(self) -> str:
        """Return the address of the server. Raises the error of its start."""
        return self._started.result()[0]

    def stop(self) -> None:
        """End the server, and wait for the end of the thread."""
        if self._started.exception() is None:
            _, loop, stopping = self._started.result()
            loop.call_soon_threadsafe(stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the thread that waits gets the error
            if not self._started.done():
                self._started.set_exception(error)

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        async with bootstrap(self._config) as app:
            self._started.set_result((app.url or "", asyncio.get_running_loop(), stopping))
            await stopping.wait()
