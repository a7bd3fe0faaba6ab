"""Which jobs a filter means, and the way through them: the Python half of `seeking.lua`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nimburion.backends.packing import STATE_CODES
from nimburion.core.job import State
from nimburion.core.reading import JobFilter, parse_cursor

STEP = 500
"""Jobs that one script looks at."""
FEW = 5_000
"""Unfinished jobs that are gathered and sorted, rather than looked for among all."""
_MOST = (1 << 53) - 1
"""No seq is larger: up to here Lua's numbers are exact."""
_FAILED = frozenset({State.FAILED})

_pack = msgspec.msgpack.Encoder().encode


class Walk:
    """The way through the jobs that may be meant, in legs, each from the newest job on.

    Args:
        which: the filter.
        states: what its states come to for this operation; None: any.
        after: the cursor behind which to begin.
        given: the fields of all that may be meant; None where these are not known.
        deletes: whether jobs that are picked are taken out, so that only finished ones are meant.

    Raises:
        InvalidJob: the cursor is none of this store.
    """

    __slots__ = ("_filter", "_legs", "_on")

    def __init__(
        self,
        which: JobFilter,
        states: frozenset[State] | None,
        after: str | None = None,
        *,
        given: Iterable[bytes] | None = None,
        deletes: bool = False,
    ) -> None:
        self._on = encode_cursor(after)
        self._filter = filter_of(which, states)
        self._legs: list[tuple[bytes, bytes]] = []
        if self._filter is not None and given is not None:
            self._legs = legs_of(given, self._on)
        elif self._filter is not None:
            self._legs = [(source, b"") for source in sources_of(states, deletes=deletes)]

    @property
    def ended(self) -> bool:
        """Whether nothing is left to look at."""
        return not self._legs

    def step(self, most: int) -> list[bytes]:
        """What the next script takes, to pick up to `most` jobs."""
        source, given = self._legs[0]
        return [source, self._on, self._filter or b"", b"%d" % most, given]

    def go_on(self, on: bytes, last: int) -> None:
        """Take up what it said: behind which job to go on, and whether nothing is left there."""
        self._on = b"" if last else on
        if last:
            del self._legs[0]


def encode_cursor(after: str | None) -> bytes:
    """The field of the job that a page's `next` names; empty for none."""
    seq = parse_cursor(after)
    return b"" if seq is None else min(seq, _MOST).to_bytes(8, "big")


def cursor_of(field: bytes) -> str:
    """The `next` of a page that ends with this job."""
    return str(int.from_bytes(field, "big"))


def fields_of(joined: bytes | None) -> list[bytes] | None:
    """What `unfinished.lua` answered, apart; None where they were too many."""
    if joined is None:
        return None
    return [joined[at : at + 8] for at in range(0, len(joined), 8)]


def filter_of(which: JobFilter, states: frozenset[State] | None) -> bytes | None:
    """A filter as scripts read it; None when it can mean nothing."""
    if states is not None and not states:
        return None
    letters = False if states is None else "".join(STATE_CODES[state] for state in sorted(states))
    rest = (False if one is None else one for one in (which.queue, which.name, which.reason))
    try:
        return _pack((letters, *rest))
    except UnicodeEncodeError:  # no store holds such a name
        return None


def sources_of(states: frozenset[State] | None, *, deletes: bool) -> list[bytes]:
    """Where to look, one after the other."""
    if states is not None and states <= _FAILED:
        return [b"dead"]
    if not deletes:
        return [b"all"]
    return [b"dead", b"done"] if states is None or State.FAILED in states else [b"done"]


def legs_of(given: Iterable[bytes], on: bytes) -> list[tuple[bytes, bytes]]:
    """Jobs that are named, newest first, as many a leg as one script looks at."""
    fields = [field for field in sorted(set(given), reverse=True) if not on or field < on]
    return [(b"given", b"".join(fields[at : at + STEP])) for at in range(0, len(fields), STEP)]
