"""Long texts in messages."""

from __future__ import annotations


def shorten(text: str, length: int = 60) -> str:
    """Return a text of at most `length` characters, with three dots where it was cut.

    >>> shorten("a quick brown fox", 10)
    'a quick...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."
