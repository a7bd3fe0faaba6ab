"""Types and limits of parameters that several operations take."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.errors import InvalidJob
from nimburion.core.limits import check_name
from nimburion.server.api.operation import make_parameter_problem

NAME_SCHEMA = r"^[A-Za-z0-9_.:-]{1,128}$"

Name = Annotated[str, Meta(pattern=NAME_SCHEMA)]
"""The name of a job or of a queue, or an id."""
Cursor = Annotated[str, Meta(min_length=1, max_length=200)]
"""The `next` of a page."""
JsonObject = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
"""The text of a JSON object. Only that it is JSON is checked."""
PageSize = Annotated[int, Meta(ge=1, le=1000)]


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a list to return."""

    limit: PageSize = 100
    after: Cursor | None = None
    """The `next` of the previous page; without it, the list begins."""


def get_name(path: Mapping[str, str], parameter: str) -> str:
    """Return a valid name or id of the path. Raises `Problem`."""
    try:
        return check_name(parameter, path[parameter])
    except InvalidJob as error:
        raise make_parameter_problem(parameter, str(error)) from None


def make_id(caller: str, key: str) -> str:
    """Return the id of a job that a caller enqueues with an `Idempotency-Key`.

    The same key makes the same id, on every server and after a restart.
    """
    digest = hashlib.blake2b(f"{caller}\0{key}".encode(), digest_size=16).hexdigest()
    return f"key-{digest}"
