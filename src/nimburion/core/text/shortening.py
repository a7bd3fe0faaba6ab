"""Long texts in messages."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 1024
"""The most bytes of a cancel reason and of a progress message."""


def shorten(text: str, length: int = 60) -> str:
    """Return a text of at most `length` characters, with three dots where it was cut.

    >>> shorten("a quick brown fox", 10)
    'a quick...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."


def clean_text(text: str, limit: int) -> str:
    """Return `text` without NUL and lone surrogates, cut in the middle to at most `limit` bytes."""
    raw = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return raw.decode()
    mark = b"\n[...]\n"
    keep = max(0, limit - len(mark)) // 2
    return (raw[:keep] + mark + raw[-keep:]).decode("utf-8", "ignore")
