"""Jobs, ids, times and options as the tables have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from nimburion.backends.server.encoding import MICRO, UnstorableTextGuard, encode_json
from nimburion.core.errors import Unstorable
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions

MIN_INT8 = -(1 << 63)
"""Before all times."""
MAX_INT8 = (1 << 63) - 1
"""After all times, and behind all seqs."""

_MAX_INT4 = (1 << 31) - 1
_UUID7_LINES = re.compile(
    r"(?:(?:^|\n)[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})+"
)
_DAY = 86_400 * MICRO

reject_unstorable_text: UnstorableTextGuard = UnstorableTextGuard("PostgreSQL")
_decode_options_json: Callable[[str], JobOptions] = msgspec.json.Decoder(JobOptions).decode


class NeedsGeneralPath(Exception):
    """A job that says more than what it is, or has an id that is not of our making."""


def to_seconds(whole: int) -> float:
    """The seconds of whole microseconds."""
    return whole / MICRO


def to_optional_seconds(whole: int | None) -> float | None:
    """The seconds of whole microseconds, where there are any."""
    return None if whole is None else whole / MICRO


def clamp_int4(number: int) -> int:
    """A number as a column of 4 bytes can have it; what is none of ours becomes one of nobody's."""
    return number if 0 <= number <= _MAX_INT4 else -1


def clamp_seq(ref: int | str) -> int:
    """The seq that a lease names; 0 is nobody's."""
    return ref if isinstance(ref, int) and 0 < ref <= MAX_INT8 else 0


def encode_uuids(job_ids: Sequence[str]) -> bytes:
    """Ids as the backend has them, end to end.

    Raises:
        NotPlain: one of them is no UUIDv7.
    """
    lines = "\n".join(job_ids)
    if not _UUID7_LINES.fullmatch(lines):
        raise NeedsGeneralPath
    return bytes.fromhex("00" + lines.replace("-", "").replace("\n", "00"))


def encode_lookup_text(text: str) -> str:
    """A name that is asked for; of one that PostgreSQL cannot hold there is nothing."""
    if "\0" in text:
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    return text


def encode_text(text: str) -> str:
    """A text that is to be stored.

    Raises:
        Unstorable: PostgreSQL cannot hold it.
    """
    if "\0" in text:
        raise Unstorable("PostgreSQL cannot hold a text with NUL characters")
    text.encode()
    return text


def encode_options(options: JobOptions) -> str | None:
    """Options as JSON; None where all are default."""
    if options is NO_JOB_OPTIONS or options == NO_JOB_OPTIONS:
        return None
    return encode_json(options).decode()


def decode_job_options(text: str | None) -> JobOptions:
    """Options from JSON."""
    return NO_JOB_OPTIONS if text is None else _decode_options_json(text)


def compute_earliest_end(packed: Sequence[bytes]) -> int:
    """Since when a job of one of these ids can have ended: ours say when they were made, by a clock
    that is not the server's, but less than a day from it."""
    if not all(len(one) == 17 and one[0] == 0 and one[7] >> 4 == 7 for one in packed):
        return MIN_INT8
    return int.from_bytes(min(packed)[1:7], "big") * 1000 - _DAY
