"""What stands behind the question mark of a URL: each option read once, in its own type."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import unquote

from nimburion.core.redaction import redact_option_name

T = TypeVar("T")

_LONGEST_WAIT = 3600.0


class Wrong(Exception):
    """What is wrong with the URL, without its secrets."""


class Options:
    """The options of one URL.

    `elsewhere` says of options that other kinds of URL have which kinds those are.
    """

    __slots__ = ("_elsewhere", "_left", "_taken")

    def __init__(
        self, pairs: Mapping[str, str], elsewhere: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._elsewhere = elsewhere
        self._left: dict[str, str] = dict(pairs)
        self._taken: list[str] = []

    def take(self, name: str, read: Callable[[str], T], default: T) -> T:
        """The value of an option that is known here."""
        self._taken.append(name)
        if name not in self._left:
            return default
        try:
            return read(self._left.pop(name))
        except Wrong as wrong:
            raise Wrong(f"{name}: {wrong}") from None

    def refuse_others(self) -> None:
        """Raise for an option that nobody took."""
        for name in self._left:
            near = difflib.get_close_matches(name, self._taken, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            if name in self._elsewhere:
                hint = f"that is for {self._elsewhere[name]}. "
            shown = cut(redact_option_name(name))
            raise Wrong(f"no option {shown} here; {hint}Known: {', '.join(self._taken)}")


def pairs_of(query: str) -> dict[str, str]:
    """`name=value&name=value` as a map."""
    pairs: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, mark, value = pair.partition("=")
        if not mark or not name:
            raise Wrong("behind ? is expected name=value, and & before the next one")
        if name in pairs:
            raise Wrong(f"option {cut(redact_option_name(name))} stands there twice")
        pairs[name] = unquoted(value)
    return pairs


def given_of(**values: object) -> Options:
    """What code gives instead of a URL's options; None: not given."""
    return Options({name: str(value) for name, value in values.items() if value is not None})


def read_flag(text: str) -> bool:
    """True or false."""
    if text.lower() not in {"true", "false"}:
        raise Wrong(f"expected true or false, found {cut(text)}")
    return text.lower() == "true"


def read_seconds(text: str) -> float:
    """A time that can be waited."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_WAIT:
        raise Wrong(f"expected seconds, above 0 and at most {_LONGEST_WAIT:g}, found {cut(text)}")
    return seconds


def read_text(text: str) -> str:
    """Any text but an empty one; it may be a secret and is not shown."""
    if not text or "\0" in text:
        raise Wrong("expected a text")
    return text


def whole(text: str, least: int, most: int) -> int:
    """A whole number within bounds."""
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if not least <= number <= most:
        raise Wrong(f"expected a whole number from {least} to {most}, found {cut(text)}")
    return number


def unquoted(text: str) -> str:
    """The text without its percent signs."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Wrong("what a %XX stands for is not UTF-8") from None


def cut(text: str) -> str:
    """A text as messages show it."""
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
