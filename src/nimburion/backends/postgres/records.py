"""Jobs, ids, times and options as the tables have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import msgspec

from nimburion.core.errors import Unstorable
from nimburion.core.job import NO_OPTIONS, Options

P = ParamSpec("P")
T = TypeVar("T")

MICRO = 1_000_000
EVER = -(1 << 63)
"""Before all times."""
ALWAYS = (1 << 63) - 1
"""After all times, and behind all seqs."""

_FURTHEST = 1 << 62
_MOST = (1 << 31) - 1
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OURS = re.compile(r"(?:(?:^|\n)[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})+")
_DAY = 86_400 * MICRO

encode_json: Callable[[object], bytes] = msgspec.json.Encoder().encode
decode_options: Callable[[str], Options] = msgspec.json.Decoder(Options).decode


class NotPlain(Exception):
    """A job that says more than what it is, or has an id that is not of our making."""


def refusing(pack: Callable[P, T]) -> Callable[P, T]:
    """Let a function that packs what is to be stored raise `Unstorable` for text that has no
    bytes (a lone surrogate)."""

    @wraps(pack)
    def packing(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return pack(*args, **kwargs)
        except UnicodeEncodeError as error:
            raise Unstorable(f"PostgreSQL cannot hold this: {error}") from error

    return packing


def micros(seconds: float) -> int:
    """Seconds in whole microseconds, the resolution of the store's clock.

    Raises:
        Unstorable: no time or span that can be stored.
    """
    try:
        whole = round(seconds * MICRO)
    except (ValueError, OverflowError):
        whole = _FURTHEST
    if not -_FURTHEST < whole < _FURTHEST:
        raise Unstorable(f"{seconds!r} s is no time or span that can be stored")
    return whole


def seconds_of(whole: int) -> float:
    """The seconds of whole microseconds."""
    return whole / MICRO


def time_of(whole: int | None) -> float | None:
    """The seconds of whole microseconds, where there are any."""
    return None if whole is None else whole / MICRO


def int4(number: int) -> int:
    """A number as a column of 4 bytes can have it; what is none of ours becomes one of nobody's."""
    return number if 0 <= number <= _MOST else -1


def seq_of(ref: int | str) -> int:
    """The seq that a lease names; 0 is nobody's."""
    return ref if isinstance(ref, int) and 0 < ref <= ALWAYS else 0


def pack_id(job_id: str) -> bytes:
    """An id as the store has it. A UUID, which ours are, takes 17 bytes instead of 36."""
    if len(job_id) == 36 and _UUID.fullmatch(job_id):
        return b"\0" + bytes.fromhex(job_id.replace("-", ""))
    return job_id.encode()


def pack_uuids(job_ids: Sequence[str]) -> bytes:
    """Ids as the store has them, end to end.

    Raises:
        NotPlain: one of them is no UUIDv7.
    """
    lines = "\n".join(job_ids)
    if not _OURS.fullmatch(lines):
        raise NotPlain
    return bytes.fromhex("00" + lines.replace("-", "").replace("\n", "00"))


def unpack_id(packed: bytes) -> str:
    """The text of an id."""
    if packed[0]:
        return packed.decode()
    text = packed.hex()
    return f"{text[2:10]}-{text[10:14]}-{text[14:18]}-{text[18:22]}-{text[22:]}"


def asked_id(job_id: str) -> bytes:
    """An id as the store has it; one that no store can hold is nobody's."""
    try:
        return pack_id(job_id)
    except UnicodeEncodeError:
        return b""


def asked_text(text: str) -> str:
    """A name that is asked for; of one that PostgreSQL cannot hold there is nothing."""
    if "\0" in text:
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    return text


def text_of(text: str) -> str:
    """A text that is to be stored.

    Raises:
        Unstorable: PostgreSQL cannot hold it.
    """
    if "\0" in text:
        raise Unstorable("PostgreSQL cannot hold a text with NUL characters")
    text.encode()
    return text


def options_text(options: Options) -> str | None:
    """Options as JSON; None where all are default."""
    if options is NO_OPTIONS or options == NO_OPTIONS:
        return None
    return encode_json(options).decode()


def options_of(text: str | None) -> Options:
    """Options from JSON."""
    return NO_OPTIONS if text is None else decode_options(text)


def ended_since(packed: Sequence[bytes]) -> int:
    """Since when a job of one of these ids can have ended: ours say when they were made, by a clock
    that is not the server's, but less than a day from it."""
    if not all(len(one) == 17 and one[0] == 0 and one[7] >> 4 == 7 for one in packed):
        return EVER
    return int.from_bytes(min(packed)[1:7], "big") * 1000 - _DAY
