"""Which jobs a filter means, newest enqueue first, by the cheapest way there is."""

from __future__ import annotations

import msgspec

from nimburion.backends.sqlite.database import Database
from nimburion.core.job import FINISHED, State
from nimburion.core.reading import JobFilter, parse_cursor

_MANY = 10_000
"""From so many unfinished jobs on, going back from the newest finds some sooner than sorting."""

_encode = msgspec.json.Encoder().encode
_seqs = msgspec.json.Decoder(list[int]).decode


def matching(
    db: Database, which: JobFilter, limit: int, after: str | None
) -> tuple[list[int], str | None]:
    """The seqs of up to `limit` jobs, and where the next page begins (None: this is the last)."""
    name, values = question(db, which, limit + 1, after)
    seqs = _seqs(db.value(name, *values))
    if len(seqs) <= limit:
        return seqs, None
    page = seqs[:limit]
    return page, str(page[-1]) if page else after


def question(
    db: Database, which: JobFilter, limit: int, after: str | None
) -> tuple[str, list[object]]:
    """The statement to ask, and its values."""
    states = None if which.states is None else _encode(sorted(which.states)).decode()
    values: list[object] = [
        states, which.queue, which.name, which.reason, parse_cursor(after), limit, db.now
    ]  # fmt: skip
    if which.ids is not None:
        return "list_ids", [*values, _encode(sorted(set(which.ids))).decode()]
    if which.states is not None and which.states <= {State.FAILED}:
        return "list_failed", values
    unfinished = which.states is not None and not which.states & FINISHED
    if unfinished and not db.value("unfinished_many", _MANY):
        return "list_unfinished", values
    return "list_newest", values
