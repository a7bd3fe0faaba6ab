"""The server itself: versions, backend, worker and checks."""

from __future__ import annotations

import msgspec

from nimburion.config.local_checks import find_version
from nimburion.jobs.worker.health import Health
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation
from nimburion.server.checks import ChecksReport


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What this server is, and how its worker does."""

    version: str
    """The version of nimburion."""
    backend: str
    """The backend, without secrets."""
    caller: str
    """The name of the token of this request; `local` without tokens."""
    rights: tuple[str, ...]
    """What this caller may do."""
    worker: Health | None
    """The worker of this process, or None if it has none."""


async def get_status(request: ApiRequest[NoQuery, NoBody]) -> ServerStatus:
    """Show the version, the backend, the caller's rights and the worker of this process."""
    processor = request.services.processor
    return ServerStatus(
        version=find_version("nimburion"),
        backend=request.services.backend.describe(),
        caller=request.caller.name,
        rights=tuple(sorted(request.caller.rights)),
        worker=None if processor is None else processor.health(),
    )


async def run_checks(request: ApiRequest[NoQuery, NoBody]) -> ChecksReport:
    """Check the backend, this host and the configuration, and suggest fixes. Changes nothing."""
    return await request.services.checks.run()


OPERATIONS = (
    Operation(method="GET", path="/status", handle=get_status, answer=ServerStatus),
    Operation(method="GET", path="/checks", handle=run_checks, answer=ChecksReport),
)
