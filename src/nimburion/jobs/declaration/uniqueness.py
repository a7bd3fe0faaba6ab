"""Uniqueness declared on a job: the unique key is made of the job's own arguments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.job import JobOptions
from nimburion.core.size_limits import MAX_TEXT

ALL_FIELDS = "*"
"""Stands for all arguments of a job, in `Uniqueness.fields`."""

_CONTROL_CHARACTER = re.compile(r"[\x7f-\x9f]")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Uniqueness(msgspec.Struct, frozen=True):
    """Which arguments make two jobs of one name equal, and what a second enqueue does then."""

    fields: tuple[str, ...]
    """Names of arguments, or `ALL_FIELDS` alone."""
    unique_for: float | None
    """Seconds that the key is held; None: until the job is finished."""
    on_duplicate: Literal["reject", "existing"]

    def check_fields(self, name: str, known: Iterable[str]) -> None:
        """Raise `DefinitionError` if a field is not an argument of the job `name`."""
        known = tuple(known)
        for field in self.fields:
            if field not in known and field != ALL_FIELDS:
                raise DefinitionError(
                    f"job {name!r}: unique names {field!r}, which is not an argument; "
                    f"the arguments are {', '.join(known) or '(none)'}"
                )

    def make_key(self, payload: bytes) -> str:
        """Return the unique key of a job with this payload.

        The key lists the arguments as JSON, such as `user_id=5`, so that an operator can read it. A
        key that would be too long is a SHA-256 sum of them.
        """
        members = _members.decode(payload)
        names = members if self.fields == (ALL_FIELDS,) else self.fields
        parts = [f"{name}={bytes(members[name]).decode()}" for name in names if name in members]
        key = ",".join(parts) or "no arguments"
        if len(key) > MAX_TEXT or _CONTROL_CHARACTER.search(key):
            return "sha256:" + hashlib.sha256(key.encode()).hexdigest()
        return key

    def apply(
        self,
        options: JobOptions,
        payload: bytes,
        on_duplicate: Literal["reject", "existing"] | None,
    ) -> JobOptions:
        """Return the options of a job with the key of its arguments.

        A key that the call passed takes precedence, and so does its `on_duplicate`; None means that
        it passed none.
        """
        if options.unique_key is not None:
            return options
        return msgspec.structs.replace(
            options,
            unique_key=self.make_key(payload),
            unique_for=self.unique_for,
            on_duplicate=on_duplicate or self.on_duplicate,
        )
