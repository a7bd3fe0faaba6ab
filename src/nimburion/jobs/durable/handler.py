"""What a durable run uses of its handler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from nimburion.core.errors import InvalidStep
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs.declaration.job import Job, JobFunction, require_declaration
from nimburion.jobs.handling.attempt_record import AttemptRecord
from nimburion.jobs.options.policy import Policy

if TYPE_CHECKING:
    from nimburion.jobs.declaration.registry import Handler


def get_policy(record: AttemptRecord) -> Policy:
    """Return the policy of the job."""
    return cast("Handler", record.handler).policy


def encode_arguments(
    record: AttemptRecord, sizes: SizeLimits, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bytes:
    """Return the payload of the handler's job with other arguments. `InvalidStep` is raised if the
    handler does not take them.
    """
    target = cast(
        "type[Job] | JobFunction[..., ..., Any, Any]", cast("Handler", record.handler).target
    )
    try:
        job = target(*args, **kwargs) if isinstance(target, type) else target.job(*args, **kwargs)
        return require_declaration(job).encode(job, sizes)
    except (TypeError, ValueError) as error:
        raise InvalidStep(f"ctx.restart: {error}") from error
