"""Statistics: encode script arguments and decode replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from nimburion.backends.redis.encoding import (
    decode_time,
    encode_lookup_text,
    reject_unstorable_text,
)
from nimburion.backends.redis.keys import Keys
from nimburion.backends.server.encoding import encode_json
from nimburion.core.metrics.statistics import (
    MERGE_AFTER,
    MERGED_SOURCE,
    STEPS,
    Counters,
    Statistics,
    add_statistics,
    check_interval,
)

_ROWS_PER_SCRIPT = 500
_INTERVALS_PER_SCRIPT = 100

_decode_counters = msgspec.json.Decoder(Counters).decode


class ScriptCall(NamedTuple):
    """The keys and arguments of one run of a script."""

    keys: list[bytes]
    arguments: list[bytes]


@reject_unstorable_text
def encode_statistics(source: str, rows: Sequence[Statistics], keys: Keys) -> list[ScriptCall]:
    """Return the runs of `put_statistics.lua` that store these rows."""
    calls = []
    for first in range(0, len(rows), _ROWS_PER_SCRIPT):
        intervals: dict[tuple[int, int], list[bytes]] = {}
        for row in rows[first : first + _ROWS_PER_SCRIPT]:
            field = f"{row.queue}\0{row.name}\0{source}".encode()
            intervals.setdefault((row.step, row.start), []).extend(
                (field, encode_json(row.counters))
            )
        call = ScriptCall([], [])
        for (step, start), pairs in intervals.items():
            call.keys.append(keys.make_statistics_key(step, start))
            expiry = _find_expiry(step, start)
            call.arguments.extend((b"%d" % expiry, b"%d" % (len(pairs) // 2), *pairs))
        calls.append(call)
    return calls


def _find_expiry(step: int, start: int) -> int:
    """Return when the hash of an interval expires. That is one step later than needed: an interval
    that is too old is not read either.
    """
    return int(start + STEPS[step] + step)


class StatisticsRead:
    """A read of the statistics of a range, with one or more runs of `list_statistics.lua`.

    Raises:
        InvalidJob: see `check_interval`.
    """

    def __init__(
        self, since: float, until: float, step: int, queue: str | None, name: str | None
    ) -> None:
        check_interval(since, until, step)
        first = -(-since // step) * step
        self._starts = [int(first) + step * n for n in range(_count_steps(first, until, step))]
        self.step: int = step
        self.last: int = self._starts[-1] if self._starts else 0
        """The start of the last interval."""
        self._filter = [encode_lookup_text(queue or ""), encode_lookup_text(name or "")]
        self._rows: list[Statistics] = []
        self.fields: dict[int, list[bytes]] = {}
        """The fields of each interval, by its start."""

    @property
    def is_finished(self) -> bool:
        """Whether all intervals have been read."""
        return not self._starts

    @property
    def rows(self) -> list[Statistics]:
        """The rows of all sources."""
        return self._rows

    def make_call(self, keys: Keys) -> ScriptCall:
        """Return the next run of the script."""
        starts = self._starts[:_INTERVALS_PER_SCRIPT]
        return ScriptCall(
            [keys.make_statistics_key(self.step, start) for start in starts],
            [*self._filter, b"%d" % STEPS[self.step], *(b"%d" % start for start in starts)],
        )

    def add_reply(self, reply: list[Any]) -> None:
        """Add the rows of a reply."""
        read, flat = reply
        del self._starts[:read]
        for start, field, counters in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            queue, name, _ = field.decode().split("\0", 2)
            self.fields.setdefault(int(start), []).append(field)
            self._rows.append(
                Statistics(
                    step=self.step,
                    start=int(start),
                    queue=queue,
                    name=name,
                    counters=_decode_counters(counters),
                )
            )


def start_merges(now: bytes, marks: list[bytes]) -> list[StatisticsRead]:
    """Return reads of the intervals whose sources are to be merged, at most one for each step.
    `now` and `marks` are those of the reply of `prune.lua`.
    """
    seconds = decode_time(int.from_bytes(now, "big"))
    merged = {int(step): int(start) for step, start in zip(marks[::2], marks[1::2], strict=True)}
    reads = []
    for step, kept in STEPS.items():
        since = max(seconds - kept, merged.get(step, 0) + step)
        until = seconds - step - MERGE_AFTER
        # The first interval that starts at `since` or later must start before `until`.
        if -(-since // step) * step < until:
            reads.append(StatisticsRead(since, until, step, None, None))
    return reads


def encode_merges(read: StatisticsRead, keys: Keys) -> list[ScriptCall]:
    """Return the runs of `merge_statistics.lua` that merge the intervals of a finished read."""
    calls = []
    sums: dict[int, list[bytes]] = {}
    for row in add_statistics(read.rows):
        field = f"{row.queue}\0{row.name}\0{MERGED_SOURCE}".encode()
        sums.setdefault(row.start, []).extend((field, encode_json(row.counters)))
    for start, pairs in sorted(sums.items()):
        dropped = sorted(set(read.fields[start]) - set(pairs[::2]))
        if dropped:
            numbers = (read.step, start, _find_expiry(read.step, start), len(dropped))
            arguments = [*(b"%d" % number for number in numbers), *dropped, *pairs]
            calls.append(ScriptCall([keys.make_statistics_key(read.step, start)], arguments))
    calls.append(ScriptCall([], [b"%d" % number for number in (read.step, read.last, 0, 0)]))
    return calls


def _count_steps(first: float, until: float, step: int) -> int:
    """Return the number of intervals that start in [`first`, `until`)."""
    return max(0, int(-(-(until - first) // step)))
