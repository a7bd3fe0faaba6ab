"""Escapes for texts that a terminal or a log shows."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_HIDDEN_IN_JSON = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escape_controls(value: object) -> str:
    """Return the text with control characters, bidirectional marks and surrogates escaped."""
    text = str(value)
    # No printable character is escaped, and this check is faster than a search.
    return text if text.isprintable() else _CONTROL.sub(_escape, text)


def escape_lines(text: str) -> str:
    """Escape like `escape_controls`, but keep line breaks and expand tabs to spaces."""
    return "\n".join(escape_controls(line.expandtabs(4)) for line in text.split("\n"))


def escape_in_json(text: str) -> str:
    """Return JSON text whose control characters and bidirectional marks are JSON escapes, which
    mean the same. Tabs and line feeds stay: they stand between the values.
    """
    return _HIDDEN_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {9: r"\t", 10: r"\n", 13: r"\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
