"""Encode and decode jobs, tokens and times; `record_format.py` has the layout."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nimburion.backends.redis.record_format import (
    DUE_AFTER,
    DUE_AT,
    FLAG_ACCEPT_EXISTING,
    FLAG_LARGE_PAYLOAD,
    FLAG_OPTIONS,
    FLAG_REPLACE,
    FLAG_SUSPENDED,
    FLAG_TENANT,
    FLAG_UNIQUE_KEY,
    MEMBER_MARK,
    NEVER,
    NEW_JOB_HEAD,
    POSITION,
    SEQ,
    STATE_CODES,
    TOKEN,
)
from nimburion.backends.server.encoding import UnstorableTextGuard, encode_id, encode_json
from nimburion.core.errors import Unstorable
from nimburion.core.ids import compute_digest
from nimburion.core.job import MAX_PRIORITY, NO_JOB_OPTIONS, JobOptions, NewJob, OnDuplicate
from nimburion.core.lease import Lease
from nimburion.core.timing.clock import MICRO, to_micros

MAX_INLINE_PAYLOAD = 4 * 1024
"""The largest payload, in bytes, that is stored together with the job. Larger payloads are stored
separately, so that completing a job does not move its payload.
"""

_DUPLICATE_FLAGS: dict[OnDuplicate, int] = {
    "reject": 0,
    "existing": FLAG_ACCEPT_EXISTING,
    "replace": FLAG_REPLACE,
}
_MEMBER_FRONT = bytes((MEMBER_MARK,))
_TIME_BIAS = 1 << 63
_MAX_FENCES = 1 << 32
_MAX_REASON_BYTES = (1 << 16) - 2
_MAX_FINGERPRINT_BYTES = (1 << 8) - 1

reject_unstorable_text: UnstorableTextGuard = UnstorableTextGuard("Redis")
decode_options: Callable[[bytes], JobOptions] = msgspec.json.Decoder(JobOptions).decode


def encode_time(micros: int) -> bytes:
    """Encode microseconds as 8 bytes whose order is the order of the times."""
    return SEQ.pack(micros + _TIME_BIAS)


_NO_SPAN = encode_time(0)


def decode_time(biased: int) -> float:
    """Return the seconds for the 8 bytes of an encoded time, given as an integer."""
    return (biased - _TIME_BIAS) / MICRO


def decode_micros(biased: int) -> int:
    """Return the microseconds for the 8 bytes of an encoded time, given as an integer."""
    return biased - _TIME_BIAS


def encode_lookup_text(text: str) -> bytes:
    """Encode a name for a lookup. A name that cannot be stored matches nothing."""
    return text.encode("utf-8", "surrogatepass")


def encode_position(job: NewJob, lane: int) -> bytes:
    """Encode the position of a new job: the index of its lane in the call, its rank and its due
    time.
    """
    if job.at is not None:
        mode, time = DUE_AT, encode_time(to_micros(job.at))
    elif job.after:
        mode, time = DUE_AFTER, encode_time(max(0, to_micros(job.after)))
    else:
        mode, time = DUE_AFTER, _NO_SPAN
    return POSITION.pack(lane, MAX_PRIORITY - job.priority, mode, time)


def encode_body(job: NewJob) -> tuple[bytes, bytes | None]:
    """Encode a new job as a body, without the part that the server adds in front. The second value
    is the payload if it is stored separately, else None.
    """
    payload, job_id, flags, middle = job.payload, encode_id(job.id), 0, b""
    if job.options is not NO_JOB_OPTIONS and job.options != NO_JOB_OPTIONS:
        flags, middle = _encode_options(job.options)
    apart = None
    if len(payload) > MAX_INLINE_PAYLOAD:
        flags |= FLAG_LARGE_PAYLOAD
        payload, apart = len(payload).to_bytes(4, "big"), payload
    front = NEW_JOB_HEAD.pack(
        flags, job.priority, compute_digest(job.name, job.payload), len(job_id)
    )
    return b"".join((front, job_id, middle, payload)), apart


def _encode_options(options: JobOptions) -> tuple[int, bytes]:
    flags, text = FLAG_OPTIONS, encode_json(options)
    if options.flow is not None or options.group is not None or options.conditions:
        text = _MEMBER_FRONT + text
        flags |= FLAG_SUSPENDED if options.conditions else 0
    middle = len(text).to_bytes(4, "big") + text
    if (tenant := options.fair_tenant) is not None:
        flags |= FLAG_TENANT
        middle += len(tenant.encode()).to_bytes(2, "big") + tenant.encode()
    if options.unique_key is not None:
        key = options.unique_key.encode()
        states = "".join(STATE_CODES[state] for state in options.unique_while or ()).encode()
        flags |= FLAG_UNIQUE_KEY | _DUPLICATE_FLAGS[options.on_duplicate]
        middle += len(key).to_bytes(2, "big") + key
        middle += _encode_span(options.unique_for) + _encode_span(options.max_wait)
        middle += len(states).to_bytes(1, "big") + states
    return flags, middle


def _encode_span(seconds: float | None) -> bytes:
    return NEVER if seconds is None else encode_time(max(0, to_micros(seconds)))


def encode_reason(text: str) -> bytes:
    """Encode the reason why a job ended.

    Raises:
        Unstorable: the reason is too long.
    """
    reason = text.encode()
    if len(reason) > _MAX_REASON_BYTES:
        raise Unstorable(f"a reason has at most {_MAX_REASON_BYTES} bytes, not {len(reason)}")
    return reason


def encode_fingerprint(text: str) -> bytes:
    """Encode the fingerprint of an error.

    Raises:
        Unstorable: the fingerprint is too long.
    """
    fingerprint = text.encode()
    if len(fingerprint) > _MAX_FINGERPRINT_BYTES:
        most, length = _MAX_FINGERPRINT_BYTES, len(fingerprint)
        raise Unstorable(f"a fingerprint has at most {most} bytes, not {length}")
    return fingerprint


def encode_unique_key(job: NewJob) -> bytes:
    """Return the scope of a job's unique key; empty if the job has no unique key."""
    key = job.options.unique_key
    return b"" if key is None else f"{job.name}\0{key}".encode()


def encode_seq(ref: int | str) -> bytes:
    """Encode the seq of a job as its field in the hashes. A value that cannot come from a lease of
    this backend becomes 0, which matches no job.
    """
    return SEQ.pack(ref if isinstance(ref, int) and 0 < ref < _TIME_BIAS else 0)


def encode_token(lease: Lease) -> bytes:
    """Encode the token of a lease: fence and nonce. A fence out of range becomes 0."""
    fence = lease.token.fence
    return TOKEN.pack(fence if 0 < fence < _MAX_FENCES else 0, lease.token.nonce)
