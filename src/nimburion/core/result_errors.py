"""Why a job has no result: stored in place of the result, which is JSON."""

from __future__ import annotations

_MARK = b"!"
"""The first byte of a stored reason. No JSON text begins with it."""
_MAX_CHARACTERS = 500


def encode_result_error(reason: str) -> bytes:
    """Return the bytes to store in place of a result that could not be kept.

    >>> encode_result_error("too large")
    b'!too large'
    """
    return _MARK + reason[:_MAX_CHARACTERS].encode("utf-8", "backslashreplace")


def decode_result_error(stored: bytes | None) -> str | None:
    """Return why a stored result could not be kept; None if it is a result, or if there is none.

    >>> decode_result_error(b"!too large"), decode_result_error(b"[1, 2]")
    ('too large', None)
    """
    if stored is None or not stored.startswith(_MARK):
        return None
    return stored[len(_MARK) :].decode("utf-8", "replace")
