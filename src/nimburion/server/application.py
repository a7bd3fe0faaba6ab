"""One process with everything: worker, scheduler and management server.

```python
from nimburion import config, server

app = server.bootstrap(config.load())
app.set_job_processor(processor)
app.set_scheduler(scheduler)
app.run()
```

The parts start in this order: backend, management server, worker, scheduler. They stop in this
order: readiness turns false, then scheduler, worker (with its grace time), management server,
backend.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nimburion.backends import open_backend
from nimburion.core.access_rights import describe_exposure
from nimburion.core.errors import ConfigurationError, DefinitionError
from nimburion.core.settings import Config
from nimburion.jobs.client.client import Client
from nimburion.jobs.event_loop import find_fast_loop, limit_exit
from nimburion.jobs.processor import Processor
from nimburion.scheduler.scheduler import Scheduler
from nimburion.server.health import HealthChecks, Phase

if TYPE_CHECKING:
    from nimburion.jobs.worker.health import Health
    from nimburion.server.management import ManagementServer
    from nimburion.server.routes import ExtraRoute
    from nimburion.server.worker_group import WorkerGroup

_log = logging.getLogger("nimburion.server")


def bootstrap(config: Config) -> Application:
    """Return the application of a loaded configuration: `bootstrap(config.load())`.

    Raises:
        ConfigurationError: the management server cannot run with these settings. The message says
            what to change.
    """
    return Application(config)


class Application:
    """A processor's worker, a scheduler and the management server, started and stopped in order.

    There are three ways to run it:

    - `app.run()` runs it until SIGTERM or SIGINT.
    - `async with app:` runs it while the block runs.
    - `Starlette(lifespan=app.lifespan)` runs it while a web application runs.

    Without a processor, only the management server runs. Then `config.jobs.url` names its backend.
    """

    def __init__(
        self,
        config: Config,
        make_extra_routes: Callable[[Client], Sequence[ExtraRoute]] = lambda _: (),
        workers: WorkerGroup | None = None,
    ) -> None:
        problem = describe_exposure(config.server)
        if problem is not None:
            raise ConfigurationError(f"server.host: {problem}")
        self._config = config
        self._processor: Processor | None = None
        self._scheduler: Scheduler | None = None
        self._make_extra_routes = make_extra_routes
        self._workers = workers
        self._phase: Phase = "stopped"
        self._parts: AsyncExitStack | None = None
        self._management: ManagementServer | None = None

    def set_job_processor(self, processor: Processor) -> None:
        """Run the worker of this processor. Raises `DefinitionError` while the application runs."""
        self._check_stopped()
        self._processor = processor

    def set_scheduler(self, scheduler: Scheduler) -> None:
        """Run this scheduler. Raises `DefinitionError` while the application runs.

        It also fires the tasks of the configuration. A scheduler of the processor runs in any
        case; `scheduler.enabled: false` in the configuration turns all of them off.
        """
        self._check_stopped()
        self._scheduler = scheduler

    @property
    def url(self) -> str | None:
        """The address of the management server, or None while it does not run."""
        return None if self._management is None else self._management.url

    # Running

    def run(self, *, owns_process: bool = False) -> None:
        """Run until SIGTERM or SIGINT. A second signal stops at once.

        The signals do what they do to `nimburion worker`: no more jobs are taken, and running
        handlers get `jobs.grace` seconds. With `owns_process`, the process ends then: neither a
        `def` handler that does not return nor what handlers left behind keeps it. Otherwise the job
        of such a handler runs again when its lease expires.
        """
        with asyncio.Runner(loop_factory=find_fast_loop()) as runner:
            runner.run(self._run(owns_process=owns_process))
            if owns_process:
                limit_exit(runner.get_loop())

    @asynccontextmanager
    async def lifespan(self, _: object = None) -> AsyncIterator[None]:
        """Run while a web application runs: `Starlette(lifespan=app.lifespan)`, or the same with
        FastAPI.
        """
        async with self:
            yield

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all parts in the background of this event loop. Does nothing if they run."""
        if self._phase != "stopped":
            return
        self._phase = "starting"
        async with AsyncExitStack() as parts:
            await self._start_parts(parts)
            self._parts = parts.pop_all()
        self._phase = "started"

    async def stop(self) -> None:
        """Stop all parts, the last one first. You can call it repeatedly."""
        parts, self._parts = self._parts, None
        if parts is not None:
            self._phase = "stopping"
            await parts.aclose()

    # Internals

    def _check_stopped(self) -> None:
        if self._phase != "stopped":
            raise DefinitionError("set processor and scheduler before the application is started")

    async def _start_parts(self, parts: AsyncExitStack) -> None:
        """Start the parts, and let `parts` stop them in the opposite order."""
        parts.callback(self._set_phase, "stopped")
        client = self._processor or Client(
            open_backend(self._config.jobs.url), settings=self._config.jobs
        )
        if self._processor is not None:
            self._add_scheduler(self._processor)
        parts.push_async_callback(client.close)
        await client.open()
        if self._config.server.enabled:
            await self._start_management(client, parts)
        if self._processor is not None:
            parts.push_async_callback(self._processor.stop)
            await self._processor.start()
        elif self._scheduler is not None and self._config.scheduler.enabled:
            self._scheduler.add_tasks(self._config.scheduler)
            parts.push_async_callback(self._scheduler.stop)
            await self._scheduler.start()

    def _add_scheduler(self, processor: Processor) -> None:
        """Let the worker of the processor start and stop the scheduler."""
        if self._scheduler is not None and self._scheduler not in processor.services:
            processor.add_service(self._scheduler)
        Scheduler.configure(processor, self._config.scheduler)

    async def _start_management(self, client: Client, parts: AsyncExitStack) -> None:
        try:
            from nimburion.server.access import AccessControl, read_tokens
            from nimburion.server.management import ManagementServer
            from nimburion.server.request_limits import RequestLimit
            from nimburion.server.root_path import RootPath
            from nimburion.server.routes import UNLIMITED_PATHS, make_management_app
            from nimburion.server.services import ManagementServices
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] not in {"starlette", "uvicorn", "jinja2"}:
                raise
            raise ConfigurationError(
                f"the management server needs {missing.name!r}, which is not installed; pip "
                "install 'nimburion[server]'; or, for a worker without it, set `enabled: false` "
                "under server"
            ) from missing
        settings = self._config.server
        health = HealthChecks(
            client.backend,
            client.clock,
            self._read_phase,
            self._find_health_source(),
            lambda: 0.0 if self._workers is None else self._workers.longest_lag,
        )
        access = AccessControl(settings, read_tokens(settings.tokens))
        services = ManagementServices(self._config, client, health, self._workers)
        app = make_management_app(services, access, self._make_extra_routes(client))
        limited = RequestLimit(app, exempt=UNLIMITED_PATHS)
        management = ManagementServer(RootPath(limited, settings.root_path), settings)
        for service in services.background:
            await service.start()
            parts.push_async_callback(service.stop)
        await management.start()
        self._management = management
        parts.push_async_callback(self._stop_management)
        parts.push_async_callback(services.stop_reads)

    async def _stop_management(self) -> None:
        management, self._management = self._management, None
        if management is not None:
            await management.stop()

    def _read_phase(self) -> Phase:
        if self._phase == "started" and self._workers and not self._workers.all_started:
            return "starting"
        return self._phase

    def _find_health_source(self) -> Callable[[], Health] | None:
        if self._workers is not None:
            return self._workers.read_health
        return None if self._processor is None else self._processor.health

    def _set_phase(self, phase: Phase) -> None:
        self._phase = phase

    async def _run(self, *, owns_process: bool) -> None:
        async with self:
            if self._processor is not None:
                await self._processor.run(owns_process=owns_process)
            else:
                await wait_for_signal()


async def wait_for_signal() -> None:
    """Return at SIGTERM or SIGINT. At a second one, the usual handlers end the process."""
    if threading.current_thread() is not threading.main_thread():
        await asyncio.Event().wait()
    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    both = (signal.SIGTERM, signal.SIGINT)
    for number in both:
        loop.add_signal_handler(number, stop_requested.set)
    try:
        await stop_requested.wait()
        _log.info("stopping; a second signal stops at once")
    finally:
        for number in both:
            loop.remove_signal_handler(number)
