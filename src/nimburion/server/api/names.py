"""Types and limits of parameters that several operations take."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

END = r"(?!\n)$"
"""The end of a pattern. In Python, `$` alone lets a newline follow."""
NAME_SCHEMA = r"^[A-Za-z0-9_.:-]{1,128}" + END

Name = Annotated[str, Meta(pattern=NAME_SCHEMA)]
"""The name of a job or of a queue, or an id."""
Cursor = Annotated[str, Meta(min_length=1, max_length=300, extra_json_schema={"format": "cursor"})]
"""The `next` of a page."""
JobCursor = Annotated[str, Meta(pattern=r"^[0-9]{1,300}" + END)]
"""The `next` of a page of jobs."""
JsonObject = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
"""The text of a JSON object. Only that it is JSON is checked."""
Text = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,512}" + END)]
"""A unique key, a tenant or a correlation id."""
ReasonText = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,500}" + END)]
"""Why an operator changes something, for the audit log."""
Time = Annotated[datetime, Meta(tz=True)]
"""ISO 8601 with a time zone; in a query also epoch seconds."""
MAX_SECONDS = 100 * 365 * 86_400
"""The longest time from now: a century."""
PositiveSeconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
PageSize = Annotated[int, Meta(ge=1, le=1000)]


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a list to return."""

    limit: PageSize = 100
    after: Cursor | None = None
    """The `next` of the previous page; without it, the list begins."""


def to_epoch(time: datetime | None) -> float | None:
    """Return a time as epoch seconds; None for None."""
    return None if time is None else time.timestamp()
