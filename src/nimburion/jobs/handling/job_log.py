"""The logger of one job."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from nimburion.core.lease import Delivery

_log = logging.getLogger("nimburion.job")


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields of the job to each log record, next to the `extra` of the call."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Merge both sets of fields; a field of the call takes precedence."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def make_job_log(delivery: Delivery) -> JobLog:
    """Return the logger of a delivered job."""
    fields = {
        "job_id": delivery.lease.job_id,
        "job_name": delivery.name,
        "queue": delivery.queue,
        "attempt": delivery.attempt,
        "correlation_id": delivery.options.correlation_id,
        "tenant": delivery.options.tenant,
    }
    return JobLog(_log, fields)
