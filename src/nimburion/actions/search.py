"""A search for jobs, as people type it: `state:failed queue:mail`."""

from __future__ import annotations

import re

from nimburion.core.errors import InvalidJob
from nimburion.core.job import Reason, State
from nimburion.core.queries import JobFilter
from nimburion.core.size_limits import check_name
from nimburion.core.text.suggestions import describe_unknown

SEARCH_BUDGET = 5_000
"""The records that are examined for one page. The next page continues where this one stopped."""
QUALIFIERS = {
    "state": "state:failed, or several: state:pending,retrying",
    "queue": "queue:mail",
    "name": "name:send_email",
    "id": "id:01a2…, or the id alone, or its first or last characters",
    "tenant": "tenant:acme",
    "correlation": "correlation:req-17",
    "tag": "tag:media",
    "flow": "flow:import-17 (its members)",
    "reason": "reason:exhausted (why a job failed)",
    "fingerprint": "fingerprint:0f3a… (of a group of dead letters)",
    "failures": "failures:2 (at least)",
    "created": "created:2h (in the last two hours; m, h or d)",
    "finished": "finished:1d",
}
"""Every qualifier with an example."""
_WORD = re.compile(r'(\w+):"([^"]*)"|(\S+)')
"""A qualifier whose value is in quotes, or any other word."""
_UNITS = {"m": 60.0, "h": 3600.0, "d": 24 * 3600.0}


class UnusableSearch(ValueError):
    """Qualifiers that cannot be used, with what to write instead."""


def parse_search(text: str, now: float) -> JobFilter:
    """Return the filter for qualifiers. A word without a colon is the id of a job. A value with
    spaces is in quotes: `tenant:"acme inc"`.

    Raises:
        UnusableSearch: a qualifier is unknown, or its value is not allowed.

    >>> parse_search("state:failed,retrying queue:mail", 0.0).queue
    'mail'
    """
    values: dict[str, list[str]] = {}
    for quoted_key, quoted, word in _WORD.findall(text):
        key, colon, value = word.partition(":")
        if quoted_key:
            key, value = quoted_key, quoted
        elif not colon:
            key, value = "id", word
        if key not in QUALIFIERS:
            raise UnusableSearch(describe_unknown("qualifier", [key], QUALIFIERS) or "")
        if not value:
            raise UnusableSearch(f"{key}: give a value behind the colon")
        values.setdefault(key, []).append(value)
    for key, given in values.items():
        if len(given) > 1 and key not in {"state", "id"}:
            raise UnusableSearch(f"{key}: give it once")
    return JobFilter(
        states=_parse_states(",".join(values.get("state", []))),
        ids=tuple(_check_name("id", one) for one in values.get("id", [])) or None,
        queue=_get_name(values, "queue"),
        name=_get_name(values, "name"),
        reason=_parse_reason(values),
        tenant=_get_first(values, "tenant"),
        correlation_id=_get_first(values, "correlation"),
        tag=_get_name(values, "tag"),
        flow=_get_name(values, "flow"),
        fingerprint=_get_first(values, "fingerprint"),
        min_failures=_parse_number(values, "failures"),
        created_from=_parse_age(values, "created", now),
        finished_from=_parse_age(values, "finished", now),
    )


def format_qualifier(value: str, key: str) -> str:
    """Return a qualifier, with the value in quotes if it needs them.

    >>> format_qualifier("acme", "tenant"), format_qualifier("acme inc", "tenant")
    ('tenant:acme', 'tenant:"acme inc"')
    """
    return f'{key}:"{value}"' if re.search(r"\s", value) else f"{key}:{value}"


def _parse_states(text: str) -> frozenset[State] | None:
    words = [word for word in text.split(",") if word]
    known = [state.value for state in State]
    problem = describe_unknown("state", words, known)
    if problem is not None:
        raise UnusableSearch(problem)
    return frozenset(State(word) for word in words) or None


def _parse_reason(values: dict[str, list[str]]) -> str | None:
    reason = _get_first(values, "reason")
    problem = describe_unknown("reason", [reason] if reason else [], [one.value for one in Reason])
    if problem is not None:
        raise UnusableSearch(problem)
    return reason


def _parse_number(values: dict[str, list[str]], key: str) -> int | None:
    text = _get_first(values, key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise UnusableSearch(f"{key}: give a whole number, as in {key}:2")
    return int(text)


def _parse_age(values: dict[str, list[str]], key: str, now: float) -> float | None:
    """Return the time from which on jobs match."""
    text = _get_first(values, key)
    if text is None:
        return None
    number, unit = text[:-1], _UNITS.get(text[-1])
    if unit is None or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise UnusableSearch(f"{key}: give an age in m, h or d, as in {key}:2h")
    return (now - int(number) * unit) // 10 * 10  # equal for some seconds: reads are shared


def _get_name(values: dict[str, list[str]], key: str) -> str | None:
    text = _get_first(values, key)
    return None if text is None else _check_name(key, text)


def _check_name(key: str, text: str) -> str:
    try:
        return check_name(key, text)
    except InvalidJob as error:
        raise UnusableSearch(str(error)) from None


def _get_first(values: dict[str, list[str]], key: str) -> str | None:
    return next(iter(values.get(key, ())), None)
