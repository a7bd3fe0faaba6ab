"""Jobs, tokens and times as bytes: the Python half of `lua/layout.lua`, which describes them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from nimburion.backends.server.encoding import MICRO, Refusing, encode_json, micros, pack_id
from nimburion.core.errors import Unstorable
from nimburion.core.job import NO_OPTIONS, NewJob, Options
from nimburion.core.lease import Lease

OPTIONS, KEY, APART, FINISHED, LENIENT = 1, 2, 4, 8, 16
"""Flags of a body."""
INLINE = 4 * 1024
"""Bytes of payload that lie with the rest of a job; larger ones lie apart, so that completing jobs
does not move their payloads about."""

_SIGN = 1 << 63
_NEVER = b"\xff" * 8
_FRONT = struct.Struct(">BB16sB")
_META = struct.Struct(">HBc8s")
_TOKEN = struct.Struct(">I16s")
_MOST_FENCES = 1 << 32
_LONGEST_REASON = (1 << 16) - 2
_SEQ = struct.Struct(">Q")

refusing: Refusing = Refusing("Redis")
decode_options: Callable[[bytes], Options] = msgspec.json.Decoder(Options).decode


def time8(whole: int) -> bytes:
    """Microseconds as 8 bytes that sort as times do."""
    return _SEQ.pack(whole + _SIGN)


def seconds_of(biased: int) -> float:
    """The seconds that 8 such bytes, read as a number, stand for."""
    return (biased - _SIGN) / MICRO


def asked_text(text: str) -> bytes:
    """A name as the store has it; of one that no store can hold there is nothing."""
    return text.encode("utf-8", "surrogatepass")


def meta_of(job: NewJob, lane: int) -> bytes:
    """Where a new job is to stand: its lane by place in the call, its rank, and when it is due."""
    if job.at is None:
        return _META.pack(lane, 9 - job.priority, b"d", time8(max(0, micros(job.after))))
    return _META.pack(lane, 9 - job.priority, b"a", time8(micros(job.at)))


def body_of(job: NewJob) -> tuple[bytes, bytes | None]:
    """A new job as it is stored, but for what the server adds in front; and its payload where
    that lies apart."""
    payload, job_id, flags, middle = job.payload, pack_id(job.id), 0, b""
    if job.options is not NO_OPTIONS and job.options != NO_OPTIONS:
        flags, middle = _options_of(job.options)
    apart = None
    if len(payload) > INLINE:
        flags |= APART
        payload, apart = len(payload).to_bytes(4, "big"), payload
    front = _FRONT.pack(flags, job.priority, job.digest(), len(job_id))
    return b"".join((front, job_id, middle, payload)), apart


def _options_of(options: Options) -> tuple[int, bytes]:
    flags, text = OPTIONS, encode_json(options)
    middle = len(text).to_bytes(4, "big") + text
    if options.unique_key is not None:
        key, span = options.unique_key.encode(), options.unique_for
        flags |= KEY | (LENIENT if options.on_duplicate == "existing" else 0)
        middle += len(key).to_bytes(1, "big") + key
        middle += _NEVER if span is None else time8(max(0, micros(span)))
    return flags, middle


def reason_of(text: str) -> bytes:
    """Why a job ended, as it is stored.

    Raises:
        Unstorable: it is too long.
    """
    reason = text.encode()
    if len(reason) > _LONGEST_REASON:
        raise Unstorable(f"a reason has at most {_LONGEST_REASON} bytes, not {len(reason)}")
    return reason


def key_field(job: NewJob) -> bytes:
    """The scope of a job's unique key; empty without one."""
    key = job.options.unique_key
    return b"" if key is None else f"{job.name}\0{key}".encode()


def seq8(ref: int | str) -> bytes:
    """The field of a job in the hashes. What no lease of this store says is the field of none."""
    return _SEQ.pack(ref if isinstance(ref, int) and 0 < ref < _SIGN else 0)


def token20(lease: Lease) -> bytes:
    """A whole token."""
    fence = lease.token.fence
    return _TOKEN.pack(fence if 0 < fence < _MOST_FENCES else 0, lease.token.nonce)
