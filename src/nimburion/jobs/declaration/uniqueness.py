"""Unique keys: which arguments make two jobs equal, how long a job holds its key, and what the
enqueue of another job with the key does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any, Literal, TypedDict, get_args

import msgspec

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.job import (
    FINISHED,
    UNFINISHED,
    WAITING,
    JobOptions,
    OnDuplicate,
    State,
    sort_states,
)
from nimburion.core.size_limits import MAX_TEXT
from nimburion.core.timing.durations import read_seconds

ALL_FIELDS = "*"
"""Stands for all arguments of a job, in `Uniqueness.fields`."""

UniqueWhile = Literal["waiting", "unfinished"] | Collection[State]
"""The states in which a job holds its unique key: `waiting` is pending, scheduled and retrying."""

_CONTROL_CHARACTER = re.compile(r"[\x7f-\x9f]")
_CENTURY_SECONDS = 100 * 365.25 * 86_400
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class UniqueKeyOptions(TypedDict, total=False):
    """The options of a unique key, on a job and in a call."""

    unique_for: float | timedelta | None
    """Hold the unique key for this many seconds instead, whether the job is finished or not."""
    unique_while: UniqueWhile | None
    """Hold the unique key only in these states: `"waiting"` (until the job starts),
    `"unfinished"`, or a set of `State`. A finished state needs `unique_for` too."""
    on_duplicate: OnDuplicate | None
    """If another job holds the unique key: raise `DuplicateJob` (`"reject"`), return the id of that
    job (`"existing"`), or give it the new arguments and due time while it waits (`"replace"`)."""
    debounce: float | timedelta | None
    """Run once, with the latest arguments, when no enqueue with the key has come for this many
    seconds."""
    max_wait: float | timedelta | None
    """With `debounce`: run at the latest this many seconds after the first enqueue."""
    throttle: float | timedelta | None
    """Run the first job of this many seconds; another enqueue returns the id of that job."""


UNIQUE_KEY_OPTIONS = frozenset(UniqueKeyOptions.__annotations__)


class KeyRule(msgspec.Struct, frozen=True):
    """How a job holds its unique key, and what its enqueue does if another job holds the key."""

    unique_for: float | None = None
    """Seconds that the key is held; None: until the job is finished."""
    unique_while: tuple[State, ...] | None = None
    """The states in which the job holds the key; None: each, until the key ends."""
    on_duplicate: OnDuplicate = "reject"
    debounce: float | None = None
    """Seconds from each enqueue until the job is due; None: as the options of the call say."""
    max_wait: float | None = None

    def apply(self, options: JobOptions, key: str) -> JobOptions:
        """Return the options of a job with this key."""
        return msgspec.structs.replace(
            options,
            unique_key=key,
            unique_for=self.unique_for,
            unique_while=self.unique_while,
            on_duplicate=self.on_duplicate,
            max_wait=self.max_wait,
        )


UNTIL_FINISHED = KeyRule()


class Uniqueness(msgspec.Struct, frozen=True):
    """Uniqueness declared on a job: the key is made of the job's own arguments."""

    fields: tuple[str, ...]
    """Names of arguments, or `ALL_FIELDS` alone."""
    rule: KeyRule = UNTIL_FINISHED

    def check_fields(self, name: str, known: Iterable[str]) -> None:
        """Raise `DefinitionError` if a field is not an argument of the job `name`."""
        known = tuple(known)
        for field in self.fields:
            if field not in known and field != ALL_FIELDS:
                raise DefinitionError(
                    f"job {name!r}: unique names {field!r}, which is not an argument; "
                    f"the arguments are {', '.join(known) or '(none)'}"
                )

    def make_key(self, payload: bytes) -> str:
        """Return the unique key of a job with this payload.

        The key lists the arguments as JSON, such as `user_id=5`, so that an operator can read it. A
        key that would be too long is a SHA-256 sum of them.
        """
        members = _members.decode(payload)
        names = members if self.fields == (ALL_FIELDS,) else self.fields
        parts = [f"{name}={bytes(members[name]).decode()}" for name in names if name in members]
        key = ",".join(parts) or "no arguments"
        if len(key) > MAX_TEXT or _CONTROL_CHARACTER.search(key):
            return "sha256:" + hashlib.sha256(key.encode()).hexdigest()
        return key


def read_key_rule(
    options: UniqueKeyOptions, error: type[InvalidJob | DefinitionError]
) -> KeyRule | None:
    """Return the rule of these options; None if they say nothing. Raises `error`, which names the
    option that is wrong.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not given:
        return None
    seconds = {
        name: _read_positive_seconds(name, given[name], error)
        for name in ("unique_for", "debounce", "max_wait", "throttle")
        if name in given
    }
    _check_combination(given, error)
    states = _read_states(given.get("unique_while"), error)
    on_duplicate: OnDuplicate = given.get("on_duplicate", "reject")
    if on_duplicate not in get_args(OnDuplicate):
        allowed = ", ".join(map(repr, get_args(OnDuplicate)))
        raise error(f"on_duplicate must be one of {allowed}, not {on_duplicate!r}")
    if "throttle" in given:
        return KeyRule(seconds["throttle"], None, given.get("on_duplicate", "existing"))
    if "debounce" in given:
        debounce, max_wait = seconds["debounce"], seconds.get("max_wait")
        if max_wait is not None and max_wait < debounce:
            raise error(f"max_wait must be at least debounce, {debounce:g} s, not {max_wait:g} s")
        if states is not None and not UNFINISHED.issuperset(states):
            raise error("debounce replaces a waiting job, so unique_while names unfinished states")
        states = sort_states(WAITING) if states is None else states
        return KeyRule(None, states, "replace", debounce, max_wait)
    unique_for = seconds.get("unique_for")
    if states is not None and unique_for is None:
        if not UNFINISHED.issuperset(states):
            finished = ", ".join(sorted(FINISHED.intersection(states)))
            raise error(
                f"unique_while names {finished}, so it needs unique_for: the seconds after which "
                "the key is free again"
            )
        states = None if UNFINISHED.issubset(states) else states
    return KeyRule(unique_for, states, on_duplicate)


_EXCLUSIVE = (
    ("throttle", ("debounce", "max_wait", "unique_for", "unique_while")),
    ("debounce", ("unique_for", "on_duplicate")),
)


def _check_combination(given: dict[str, Any], error: type[InvalidJob | DefinitionError]) -> None:
    for name, others in _EXCLUSIVE:
        for other in others:
            if name in given and other in given and given[other] not in _IMPLIED.get(name, ()):
                raise error(f"pass {name} or {other}, not both")
    if "max_wait" in given and "debounce" not in given:
        raise error("max_wait needs debounce: the seconds from each enqueue until the job is due")


_IMPLIED = {"debounce": ("replace",)}
"""What an option says already, so that it may be written as well."""


def _read_states(
    value: object, error: type[InvalidJob | DefinitionError]
) -> tuple[State, ...] | None:
    if value is None:
        return None
    if value == "waiting":
        return sort_states(WAITING)
    if value == "unfinished":
        return sort_states(UNFINISHED)
    allowed = {state.value for state in State}
    if (
        isinstance(value, str)
        or not isinstance(value, Collection)
        or not value
        or not all(isinstance(state, str) and str(state) in allowed for state in value)
    ):
        raise error(
            "unique_while must be 'waiting', 'unfinished' or a set of states "
            f"({', '.join(state.value for state in State)}), not {value!r}"
        )
    return sort_states(State(state) for state in value)


def _read_positive_seconds(
    what: str, value: object, error: type[InvalidJob | DefinitionError]
) -> float:
    seconds = read_seconds(value)
    if seconds is None:
        raise error(f"{what} must be a number of seconds or a timedelta, not {value!r}")
    if seconds > _CENTURY_SECONDS:
        raise error(f"{what} must be less than a century, not {seconds:g} seconds")
    if seconds <= 0:
        raise error(f"{what} must be more than 0 seconds, not {value!r}")
    return seconds
