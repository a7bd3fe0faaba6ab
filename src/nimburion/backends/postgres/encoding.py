"""Encode jobs, ids, times and options for the tables, and decode them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from nimburion.backends.server.encoding import UnstorableTextGuard, encode_json
from nimburion.core.errors import Unstorable
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions
from nimburion.core.timing.clock import MICRO

MIN_INT8 = -(1 << 63)
"""A time before all times."""
MAX_INT8 = (1 << 63) - 1
"""A time after all times, and a seq after all seqs."""

MAX_INT4 = (1 << 31) - 1
_UUID7_LINES = re.compile(
    r"(?:(?:^|\n)[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})+"
)
_DAY = 86_400 * MICRO

reject_unstorable_text: UnstorableTextGuard = UnstorableTextGuard("PostgreSQL")
_decode_options_json: Callable[[str], JobOptions] = msgspec.json.Decoder(JobOptions).decode


class NeedsGeneralPath(Exception):
    """Raised for a job with options, a due time, or an id that nimburion did not create."""


def to_seconds(micros: int) -> float:
    """Convert microseconds to seconds."""
    return micros / MICRO


def to_optional_seconds(micros: int | None) -> float | None:
    """Convert microseconds to seconds; None stays None."""
    return None if micros is None else micros / MICRO


def clamp_int4(number: int) -> int:
    """Limit a number to 4 bytes. An out-of-range value becomes -1, which matches no row."""
    return number if 0 <= number <= MAX_INT4 else -1


def clamp_seq(ref: int | str) -> int:
    """Return the seq of a lease. An invalid value becomes 0, which matches no job."""
    return ref if isinstance(ref, int) and 0 < ref <= MAX_INT8 else 0


def encode_uuids(job_ids: Sequence[str]) -> bytes:
    """Encode ids as bytes, one after the other.

    Raises:
        NeedsGeneralPath: one of the ids is not a UUIDv7.
    """
    lines = "\n".join(job_ids)
    if not _UUID7_LINES.fullmatch(lines):
        raise NeedsGeneralPath
    return bytes.fromhex("00" + lines.replace("-", "").replace("\n", "00"))


def encode_lookup_text(text: str) -> str:
    """Encode a name for a lookup. A name that cannot be stored matches nothing."""
    if "\0" in text:
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    return text


def encode_text(text: str) -> str:
    """Check a text that is to be stored, and return it.

    Raises:
        Unstorable: PostgreSQL cannot store it.
    """
    if "\0" in text:
        raise Unstorable("PostgreSQL cannot hold a text with NUL characters")
    text.encode()
    return text


def encode_options(options: JobOptions) -> str | None:
    """Encode options as JSON; None if all have their default."""
    if options is NO_JOB_OPTIONS or options == NO_JOB_OPTIONS:
        return None
    return encode_json(options).decode()


def decode_job_options(text: str | None) -> JobOptions:
    """Decode options from JSON."""
    return NO_JOB_OPTIONS if text is None else _decode_options_json(text)


def compute_earliest_end(packed: Sequence[bytes]) -> int:
    """Return the earliest time, in microseconds, at which a job with one of these ids can have
    ended. A UUIDv7 holds the time of its creation. The clock that made it is assumed to differ from
    the server's by less than a day. For other ids the result is `MIN_INT8`.
    """
    for packed_id in packed:
        if len(packed_id) != 17 or packed_id[0] != 0 or packed_id[7] >> 4 != 7:
            return MIN_INT8
    return int.from_bytes(min(packed)[1:7], "big") * 1000 - _DAY
