"""Parse the five fields of a cron expression.

An error names the field, its position, the column of the invalid part, and the allowed values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.text.shortening import shorten

LAST = -1
"""The value that stands for the last occurrence of a weekday in its month."""

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_NUMBER = re.compile(r"[0-9]{1,4}")
_NTH = re.compile(r"([^#]+)#([0-9]{1,4})")
_LAST_WEEKDAY = re.compile(r"([0-9]{1,4}|[A-Z]{3})L")


class FieldKind(msgspec.Struct, frozen=True):
    """One of the five fields: its position, name, range of numbers and symbolic names."""

    place: int
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    """Symbolic names in ascending order. The first one stands for `first_word`: 1 in months, 0
    in weekdays."""
    first_word: int = 0


MINUTE = FieldKind(1, "minute", 0, 59)
HOUR = FieldKind(2, "hour", 0, 23)
DAY = FieldKind(3, "day of month", 1, 31)
MONTH = FieldKind(4, "month", 1, 12, _MONTHS, 1)
WEEKDAY = FieldKind(5, "day of week", 0, 7, _WEEKDAYS)
KINDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


class FieldText(msgspec.Struct, frozen=True):
    """A field of an expression, or one term of it, with its position for error messages."""

    kind: FieldKind
    text: str
    column: int
    """The column of the first character in the expression, counted from 1."""

    def make_error(self, problem: str) -> DefinitionError:
        """Return a `DefinitionError` that names the field, the column and the text."""
        shown = shorten(self.text)
        where = f"field {self.kind.place} ({self.kind.name}), column {self.column}"
        return DefinitionError(f"{where}, {shown!a}: {problem}")


class CronField(msgspec.Struct, frozen=True):
    """The values that one field matches."""

    source: FieldText
    numbers: tuple[int, ...]
    """The matching numbers in ascending order; Sunday is 0."""
    last_day: bool = False
    """Whether `L` is among the days: the last day of the month."""
    last_workday: bool = False
    """Whether `LW` is among the days: the last Monday to Friday of the month."""
    nth: frozenset[tuple[int, int]] = frozenset()
    """Pairs (weekday, occurrence in the month). `1#2` is the second Monday; `1L` has occurrence
    `LAST`."""

    @property
    def text(self) -> str:
        """The text of the field, in capitals."""
        return self.source.text

    @property
    def starred(self) -> bool:
        """Whether the field begins with `*`, as the rules of cron distinguish."""
        return self.text.startswith("*")


def parse_field(source: FieldText) -> CronField:
    """Parse a field in capitals. Raises `DefinitionError` with the position and the allowed
    values."""
    numbers: set[int] = set()
    nth: set[tuple[int, int]] = set()
    specials: set[str] = set()
    for term in _split_list(source):
        if source.kind is DAY and term.text in {"L", "LW"}:
            specials.add(term.text)
        elif source.kind is WEEKDAY and (one := _parse_nth_weekday(term)) is not None:
            nth.add(one)
        else:
            numbers.update(_parse_range(term))
    if source.kind is WEEKDAY:
        numbers = {number % 7 for number in numbers}
    return CronField(
        source,
        tuple(sorted(numbers)),
        last_day="L" in specials,
        last_workday="LW" in specials,
        nth=frozenset(nth),
    )


def _split_list(source: FieldText) -> Iterator[FieldText]:
    """Yield the terms between the commas."""
    column = source.column
    for text in source.text.split(","):
        yield FieldText(source.kind, text, column)
        column += len(text) + 1


def _parse_nth_weekday(term: FieldText) -> tuple[int, int] | None:
    """Parse `1#2`, `FRI#1` or `5L`; return None for any other term."""
    if match := _LAST_WEEKDAY.fullmatch(term.text):
        return _parse_number(match[1], term) % 7, LAST
    if "#" not in term.text:
        return None
    match = _NTH.fullmatch(term.text)
    if match is None or not 1 <= int(match[2]) <= 5:
        raise term.make_error("must be a day, # and 1 to 5, like 1#2 or FRI#1")
    return _parse_number(match[1], term) % 7, int(match[2])


def _parse_range(term: FieldText) -> range:
    """Parse `*`, `7` or `1-5`, each with an optional `/step`."""
    kind = term.kind
    span, slash, step_text = term.text.partition("/")
    step = _parse_step(step_text, term) if slash else 1
    if span == "*":
        return range(kind.least, _find_highest(kind) + 1, step)
    first_text, dash, last_text = span.partition("-")
    first = _parse_number(first_text, term)
    if dash:
        return range(first, _parse_range_end(first, last_text, term) + 1, step)
    return range(first, (_find_highest(kind) if slash else first) + 1, step)


def _find_highest(kind: FieldKind) -> int:
    """Return the highest number of a field. Weekdays end at 6: a step must not match Sunday as 0
    and 7."""
    return 6 if kind is WEEKDAY else kind.most


def _parse_range_end(first: int, last_text: str, term: FieldText) -> int:
    last = _parse_number(last_text, term)
    if term.kind is WEEKDAY and last == 0 and first > 0:
        last = 7  # a range such as FRI-SUN
    if last < first:
        high, low = _find_highest(term.kind), term.kind.least
        raise term.make_error(f"the range is reversed; write {first}-{high},{low}-{last}")
    return last


def _parse_step(step_text: str, term: FieldText) -> int:
    longest = term.kind.most - term.kind.least
    if not _NUMBER.fullmatch(step_text) or not 1 <= int(step_text) <= longest:
        raise term.make_error(f"the step after / must be 1 to {longest}, not {step_text!a}")
    return int(step_text)


def _parse_number(word: str, term: FieldText) -> int:
    kind = term.kind
    if word in kind.names:
        return kind.names.index(word) + kind.first_word
    if not _NUMBER.fullmatch(word) or not kind.least <= int(word) <= kind.most:
        raise term.make_error(
            f"{word!a} is not one of {_describe_allowed(kind)}{_suggest_word(word)}"
        )
    return int(word)


def _describe_allowed(kind: FieldKind) -> str:
    numbers = f"{kind.least}-{kind.most}"
    return f"{numbers}, {kind.names[0]}-{kind.names[-1]}" if kind.names else numbers


def _suggest_word(word: str) -> str:
    if word == "?":
        return "; for any value write *"
    if word in {"L", "LW"}:
        return "; L and LW are days of the month; 5L is the last Friday"
    return ""
