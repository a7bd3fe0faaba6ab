"""The types of settings: how each is parsed, and how messages describe it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import msgspec

from nimburion.config.tree import Path, Written, describe_type, make_refusal
from nimburion.core.errors import DefinitionError
from nimburion.core.rate_limits import parse_rate
from nimburion.core.size_limits import NAME_PATTERN
from nimburion.core.text.redaction import redact_value
from nimburion.core.text.shortening import shorten
from nimburion.core.text.sizes import read_byte_count
from nimburion.core.timing.durations import parse_duration_text

MAX_DURATION = 36_525 * 86_400.0


class InvalidValue(Exception):
    """A value that does not fit its type; the message may give the reason."""


class ValueType(msgspec.Struct, frozen=True):
    """The type of a setting."""

    allowed: str
    """The allowed values, for messages and docs."""
    take: Callable[[Written], object]
    """Returns the value as `Settings` holds it, or raises `InvalidValue`."""
    optional: bool = False
    """An empty value, or the word `none`, means None."""
    secret: bool = False
    """The value is never shown, not even in an error message."""

    def read(self, written: Written, path: Path) -> object:
        """Return the parsed value.

        Raises:
            ConfigurationError: the value is invalid. The message shows it and the allowed values.
        """
        if self.optional and (written.value is None or written.value == "none"):
            return None
        try:
            return self.take(written)
        except InvalidValue as reason:
            hint = f" ({reason})" if str(reason) else ""
            problem = f"expected {self.allowed}, found {self._show(written)}{hint}"
            raise make_refusal(written.place, path, problem) from None

    def _show(self, written: Written) -> str:
        value = written.value
        if self.secret or not isinstance(value, str | int | float) or isinstance(value, bool):
            return describe_type(value)
        text = redact_value(value) if isinstance(value, str) else written.text or str(value)
        cut = shorten(text)
        return ascii(cut) if isinstance(value, str) else cut


def integer(least: int, most: int, *, optional: bool = False) -> ValueType:
    """Return the type of a whole number within bounds."""

    def take(written: Written) -> int:
        value = written.value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidValue(_unquote(value))
        return value

    return ValueType(_add_none(f"a whole number from {least} to {most}", optional), take, optional)


def number(least: float, most: float) -> ValueType:
    """Return the type of a number within bounds."""

    def take(written: Written) -> float:
        value = written.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidValue
        if not least <= value <= most:
            raise InvalidValue
        return float(value)

    return ValueType(f"a number from {least:g} to {most:g}", take)


def duration(least: float, *, most: float = MAX_DURATION, optional: bool = False) -> ValueType:
    """Return the type of a duration: seconds, or a text such as `1h30m`."""

    def take(written: Written) -> float:
        seconds = parse_duration(written.value)
        if not least <= seconds <= most:
            raise InvalidValue(
                f"at least {least:g} s" if seconds < least else f"at most {most:g} s"
            )
        return seconds

    return ValueType(
        _add_none("seconds, or a text like 30s, 5m, 1h30m, 90d", optional), take, optional
    )


def size(least: int, most: int, *, optional: bool = False) -> ValueType:
    """Return the type of a size: bytes, or a text such as `256KiB`."""

    def take(written: Written) -> int:
        count = _parse_byte_count(written.value)
        if not least <= count <= most:
            raise InvalidValue(f"from {least} to {most} bytes")
        return count

    return ValueType(_add_none("bytes, or a text like 256KiB, 1MiB", optional), take, optional)


def text(*, secret: bool = False) -> ValueType:
    """Return the type of any text. A number keeps its source text: `password: 0123` keeps its
    zero.
    """

    def take(written: Written) -> str:
        value = written.text if written.text is not None else written.value
        if not isinstance(value, str) or not value or written.value is None:
            raise InvalidValue
        if not value.isprintable():
            raise InvalidValue("without control characters")
        _refuse_variable(value, is_in_file=written.place.line is not None)
        return value

    return ValueType("a text", take, secret=secret)


def _refuse_variable(value: str, *, is_in_file: bool) -> None:
    """Raise `InvalidValue` for a text that somebody expects to be expanded.

    `$word` is refused in a file only: elsewhere it is a password that begins so.
    """
    if re.fullmatch(r"\$\{.*\}", value) or (is_in_file and re.fullmatch(r"\$\w+", value)):
        instead = "set it by NIMBURION_… instead" if is_in_file else "write the value itself"
        raise InvalidValue(f"variables are not expanded here; {instead}")


def zone() -> ValueType:
    """Return the type of a time zone: its IANA name."""
    spelled = text()

    def take(written: Written) -> object:
        from nimburion.core.timing.timezones import find_zone, suggest_zone  # only if one is set

        found = str(spelled.take(written))
        try:
            return find_zone(found).key
        except DefinitionError:
            raise InvalidValue(suggest_zone(found)) from None

    return ValueType("an IANA time zone", take)


def name(longest: int = 128) -> ValueType:
    """Return the type of the name of a queue, an application or a namespace."""

    def take(written: Written) -> str:
        value = written.text if written.text is not None else written.value
        if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value) or len(value) > longest:
            raise InvalidValue
        return value

    return ValueType(f"1-{longest} characters of A-Z a-z 0-9 _ . : -", take)


_URL_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)+")


def url_path() -> ValueType:
    """Return the type of the path of a URL: `/jobs`."""

    def take(written: Written) -> str:
        value = written.value
        if not isinstance(value, str) or not _URL_PATH.fullmatch(value):
            raise InvalidValue
        return value

    return ValueType("a path like /jobs, without a slash at the end", take)


def rate(*, optional: bool = False) -> ValueType:
    """Return the type of a rate: `100/min`."""

    def take(written: Written) -> str:
        value = written.value
        try:
            if not isinstance(value, str) or parse_rate(value) is None:
                raise InvalidValue
        except DefinitionError as error:
            reason = str(error)
            raise InvalidValue("" if reason.startswith("rate must be") else reason) from None
        return value

    return ValueType(_add_none("a rate like 100/min, 5/s or 1000/2h", optional), take, optional)


def choice(*words: str) -> ValueType:
    """Return the type of a setting that is one of these words."""

    def take(written: Written) -> str:
        if written.value not in words or not isinstance(written.value, str):
            raise InvalidValue
        return written.value

    return ValueType(f"one of {', '.join(words)}", take)


def flag() -> ValueType:
    """Return the type of a setting that is true or false."""

    def take(written: Written) -> bool:
        if not isinstance(written.value, bool):
            raise InvalidValue
        return written.value

    return ValueType("true or false", take)


def listed(each: ValueType) -> ValueType:
    """Return the type of a list of such values; a text is split at its commas."""

    def take(written: Written) -> tuple[object, ...]:
        value = written.value
        if isinstance(value, str):
            value = [Written(item.strip(), written.place) for item in value.split(",")]
        if not isinstance(value, list):
            raise InvalidValue
        taken = []
        for number, item in enumerate(value, 1):
            try:
                taken.append(each.take(item))
            except InvalidValue as reason:
                raise InvalidValue(str(reason) or f"item {number} is none of these") from None
        return tuple(dict.fromkeys(taken))

    return ValueType(f"a list, each {each.allowed}", take)


def json_object() -> ValueType:
    """Return the type of a JSON object: a map of any values, or JSON as a text; stored as JSON."""

    def take(written: Written) -> str:
        if isinstance(written.value, dict):
            return json.dumps(_to_plain(written), ensure_ascii=False, allow_nan=False)
        try:
            found = json.loads(written.value) if isinstance(written.value, str) else None
        except (ValueError, RecursionError):
            raise InvalidValue("no JSON") from None
        if not isinstance(found, dict):
            raise InvalidValue
        return str(written.value)

    return ValueType("a map, or a JSON object as a text", take)


def _to_plain(written: Written) -> object:
    """Return the value without its places."""
    value = written.value
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue("JSON has no infinite numbers")
    return value


def _add_none(allowed: str, optional: bool) -> str:  # noqa: FBT001 (an adjective of the kind)
    return f"{allowed}, or none" if optional else allowed


def _unquote(value: object) -> str:
    return "without quotes" if isinstance(value, str) and value.isdecimal() else ""


def parse_duration(value: object) -> float:
    """Return a number of seconds, from a number or a text such as `1h30m`.

    Raises:
        InvalidValue: it is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _check_finite(value)
    seconds = parse_duration_text(value) if isinstance(value, str) else None
    if seconds is None:
        raise InvalidValue(_unquote(value))
    return seconds


def _check_finite(value: float) -> float:
    try:
        seconds = float(value)
    except OverflowError:
        raise InvalidValue from None
    if not math.isfinite(seconds):
        raise InvalidValue
    return seconds


def _parse_byte_count(value: object) -> int:
    count = read_byte_count(value)
    if count is None:
        raise InvalidValue(_unquote(value))
    return count
