"""The five fields of a cron expression: what may stand in each, and what it means.

An error names the field by its place and its name, the column of what is wrong, and says what may
stand there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from nimburion.core.errors import DefinitionError

LAST = -1
"""As the number of a weekday in its month: the last one."""

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_NUMBER = re.compile(r"[0-9]{1,4}")
_NTH = re.compile(r"([^#]+)#([0-9]{1,4})")
_LAST_WEEKDAY = re.compile(r"([0-9]{1,4}|[A-Z]{3})L")


class FieldKind(msgspec.Struct, frozen=True):
    """One of the five: its name, its numbers, and words for some of them."""

    place: int
    name: str
    least: int
    most: int
    words: tuple[str, ...] = ()
    """The first stands for 1 in months, for 0 in weekdays."""
    first_word: int = 0


MINUTE = FieldKind(1, "minute", 0, 59)
HOUR = FieldKind(2, "hour", 0, 23)
DAY = FieldKind(3, "day of month", 1, 31)
MONTH = FieldKind(4, "month", 1, 12, _MONTHS, 1)
WEEKDAY = FieldKind(5, "day of week", 0, 7, _WEEKDAYS)
KINDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


class FieldText(msgspec.Struct, frozen=True):
    """A field in its expression, or a term of it; for messages."""

    kind: FieldKind
    text: str
    column: int
    """Of its first character in the expression, from 1."""

    def make_error(self, problem: str) -> DefinitionError:
        """The one form of all errors about a field."""
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        where = f"field {self.kind.place} ({self.kind.name}), column {self.column}"
        return DefinitionError(f"{where}, {shown!a}: {problem}")


class CronField(msgspec.Struct, frozen=True):
    """What one field lets through."""

    spot: FieldText
    numbers: tuple[int, ...]
    """In rising order; Sunday is 0."""
    last_day: bool = False
    """`L` among the days of the month."""
    last_workday: bool = False
    """`LW`: the last Monday to Friday of the month."""
    nth: frozenset[tuple[int, int]] = frozenset()
    """`1#2`, the second Monday: (weekday, which); which is `LAST` for `1L`."""

    @property
    def text(self) -> str:
        """As it stands in the expression, in capitals."""
        return self.spot.text

    @property
    def starred(self) -> bool:
        """Whether it begins with `*`, which is what cron's rules turn on."""
        return self.text.startswith("*")


def parse_field(spot: FieldText) -> CronField:
    """Read a field, in capitals. `DefinitionError` says where and what is allowed."""
    numbers: set[int] = set()
    nth: set[tuple[int, int]] = set()
    specials: set[str] = set()
    for term in _split_terms(spot):
        if spot.kind is DAY and term.text in {"L", "LW"}:
            specials.add(term.text)
        elif spot.kind is WEEKDAY and (one := _parse_nth_weekday(term)) is not None:
            nth.add(one)
        else:
            numbers.update(_parse_range(term))
    if spot.kind is WEEKDAY:
        numbers = {number % 7 for number in numbers}
    return CronField(
        spot,
        tuple(sorted(numbers)),
        last_day="L" in specials,
        last_workday="LW" in specials,
        nth=frozenset(nth),
    )


def _split_terms(spot: FieldText) -> Iterator[FieldText]:
    """What stands between the commas."""
    column = spot.column
    for text in spot.text.split(","):
        yield FieldText(spot.kind, text, column)
        column += len(text) + 1


def _parse_nth_weekday(term: FieldText) -> tuple[int, int] | None:
    """`1#2`, `FRI#1`, `5L`; None for anything else."""
    if match := _LAST_WEEKDAY.fullmatch(term.text):
        return _parse_number(match[1], term) % 7, LAST
    if "#" not in term.text:
        return None
    match = _NTH.fullmatch(term.text)
    if match is None or not 1 <= int(match[2]) <= 5:
        raise term.make_error("must be a day, # and 1 to 5, like 1#2 or FRI#1")
    return _parse_number(match[1], term) % 7, int(match[2])


def _parse_range(term: FieldText) -> range:
    """`*`, `7`, `1-5`, and each of them with `/step`."""
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
    """7 is Sunday again: a step over the whole week must not meet it twice."""
    return 6 if kind is WEEKDAY else kind.most


def _parse_range_end(first: int, last_text: str, term: FieldText) -> int:
    last = _parse_number(last_text, term)
    if term.kind is WEEKDAY and last == 0 and first > 0:
        last = 7  # FRI-SUN
    if last < first:
        high, low = _find_highest(term.kind), term.kind.least
        raise term.make_error(f"the range runs backwards; write {first}-{high},{low}-{last}")
    return last


def _parse_step(step_text: str, term: FieldText) -> int:
    longest = term.kind.most - term.kind.least
    if not _NUMBER.fullmatch(step_text) or not 1 <= int(step_text) <= longest:
        raise term.make_error(f"the step behind / must be 1 to {longest}, not {step_text!a}")
    return int(step_text)


def _parse_number(word: str, term: FieldText) -> int:
    kind = term.kind
    if word in kind.words:
        return kind.words.index(word) + kind.first_word
    if not _NUMBER.fullmatch(word) or not kind.least <= int(word) <= kind.most:
        raise term.make_error(f"{word!a} is none of {_describe_allowed(kind)}{_suggest_word(word)}")
    return int(word)


def _describe_allowed(kind: FieldKind) -> str:
    numbers = f"{kind.least}-{kind.most}"
    return f"{numbers}, {kind.words[0]}-{kind.words[-1]}" if kind.words else numbers


def _suggest_word(word: str) -> str:
    if word == "?":
        return "; for any value write *"
    if word in {"L", "LW"}:
        return "; L and LW stand among the days of the month, 5L is the last Friday"
    return ""
