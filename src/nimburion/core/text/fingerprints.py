"""Fingerprints: equal errors of different jobs get the same short text, so they can be grouped."""

from __future__ import annotations

import hashlib
import re

_MESSAGE_CHARACTERS = 500
"""Characters of the message that count. Long messages often carry data after the first line."""

_VARIABLE_PARTS = re.compile(
    r"0x[0-9a-fA-F]+"  # addresses
    r"|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"  # UUIDs
    r"|\b(?=\w*\d)\w{16,}\b"  # long ids
    r"|\d+"  # numbers
    r"|'[^']*'|\"[^\"]*\""  # quoted values
)


def compute_fingerprint(kind: str, error_type: str, place: str, message: str) -> str:
    """Return 16 hexadecimal digits that equal errors share.

    Errors are equal if they have the same kind and type, were raised at the same place, and have
    the same message apart from numbers, ids and quoted values.

    Args:
        kind: the `ErrorKind` of the error.
        error_type: the name of the exception's class.
        place: the innermost function of the application, without a line number; may be empty.
        message: the text of the exception.

    >>> first = compute_fingerprint("failure", "ValueError", "app.send", "no user 17")
    >>> first == compute_fingerprint("failure", "ValueError", "app.send", "no user 4")
    True
    >>> first == compute_fingerprint("failure", "KeyError", "app.send", "no user 17")
    False
    """
    stable_message = _VARIABLE_PARTS.sub("#", message[:_MESSAGE_CHARACTERS])
    body = f"{kind}\0{error_type}\0{place}\0{stable_message}"
    return hashlib.blake2b(body.encode("utf-8", "replace"), digest_size=8).hexdigest()


LOST_FINGERPRINT = compute_fingerprint("lost", "WorkerLost", "", "its worker's session expired")
"""The fingerprint of the errors that backends record when they rescue a job."""
