"""Unique keys: which arguments make two jobs equal, how long a job holds its key, and what the
enqueue of another job with the key does.

```python
@job(unique=Unique("customer", while_="waiting", on_duplicate="existing"))
async def refresh(customer: int) -> None: ...
```
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal, get_args

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
from nimburion.core.size_limits import shorten_key
from nimburion.core.timing.durations import Duration, require_positive_seconds

ALL_FIELDS = "*"
"""Stands for all arguments of a job, in `Uniqueness.fields`."""

UniqueWhile = Literal["waiting", "unfinished"] | Collection[State]
"""The states in which a job holds its unique key: `waiting` is pending, scheduled and retrying."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


Fields = bool | str | Sequence[str]
"""Names of arguments; True: all arguments."""


@dataclass(frozen=True, slots=True)
class Unique:
    """Which jobs are equal, how long a job holds its unique key, and what a second one does.

    As the option `unique` of a job, it says all of this. In a call of `enqueue`, the key is the
    option `unique_key` or the declared one, and `unique` says the rest. Durations are seconds, a
    timedelta or a text like `1h30m`.

    Args:
        fields: names of arguments: at most one unfinished job has these values. By default all
            arguments. Only in the declaration of a job.
        key: a function of the job that returns the key as a text, instead of `fields`.
        while_: hold the key only in these states: `"waiting"` (until the job starts),
            `"unfinished"`, or a set of `State`. A finished state needs `for_` too.
        for_: hold the key for this time instead, whether the job is finished or not.
        on_duplicate: if another job holds the key: `"reject"` raises `DuplicateJob`, `"existing"`
            returns the id of that job, `"replace"` gives it the new arguments and due time while it
            waits. `debounce` and `throttle` say this themselves.
        debounce: run once, with the latest arguments, when no enqueue with the key has come for
            this time.
        max_wait: with `debounce`: run at the latest this time after the first enqueue.
        throttle: run the first job of this time; another enqueue returns the id of that job.
    """

    fields: Fields | None = None
    _: KW_ONLY
    key: Callable[[Any], object] | None = None
    while_: UniqueWhile | None = None
    for_: Duration | None = None
    on_duplicate: OnDuplicate | None = None
    debounce: Duration | None = None
    max_wait: Duration | None = None
    throttle: Duration | None = None

    def __repr__(self) -> str:
        given = get_given_values(self)
        first = [repr(given.pop("fields"))] if "fields" in given else []
        parts = [*first, *(f"{name}={value!r}" for name, value in given.items())]
        return f"Unique({', '.join(parts)})"


def get_given_values(unique: Unique) -> dict[str, Any]:
    """Return the values that are not None, by name."""
    values = {each.name: getattr(unique, each.name) for each in fields(unique)}
    return {name: value for name, value in values.items() if value is not None}


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
    throttles: bool = False
    """Whether this is a `throttle`: `unique_for` is its time."""

    def change_on_duplicate(self, on_duplicate: OnDuplicate) -> KeyRule:
        """Return the rule with another `on_duplicate`.

        Raises `InvalidJob` if the rule is a debounce or a throttle, which say this already.
        """
        given: dict[str, Any] = {"on_duplicate": on_duplicate}
        if self.throttles:
            given["throttle"] = self.unique_for
        if self.debounce is not None:
            given["debounce"] = self.debounce
        _check_combination(given, InvalidJob)
        return msgspec.structs.replace(self, on_duplicate=on_duplicate)

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
    key: Callable[[Any], object] | None = None
    """Returns the key of a job, instead of `fields`."""

    def check_fields(self, name: str, known: Iterable[str]) -> None:
        """Raise `DefinitionError` if a field is not an argument of the job `name`."""
        known = tuple(known)
        for field in self.fields:
            if field not in known and field != ALL_FIELDS:
                raise DefinitionError(
                    f"job {name!r}: unique names {field!r}, which is not an argument; "
                    f"the arguments are {', '.join(known) or '(none)'}"
                )

    def make_key(self, payload: bytes, job: object) -> str:
        """Return the unique key of a job with this payload.

        The key lists the arguments as JSON, such as `user_id=5`, so that an operator can read it. A
        key that would be too long is a SHA-256 sum of them. Raises `InvalidJob` if the function of
        the key fails.
        """
        if self.key is not None:
            return shorten_key(_call_key(self.key, job))
        members = _members.decode(payload)
        names = members if self.fields == (ALL_FIELDS,) else self.fields
        parts = [f"{name}={bytes(members[name]).decode()}" for name in names if name in members]
        return shorten_key(",".join(parts) or "no arguments")


def _call_key(key: Callable[[Any], object], job: object) -> str:
    try:
        text = str(key(job))
    except Exception as error:
        raise InvalidJob(f"the function of the unique key failed with {error!r}") from error
    if not text:
        raise InvalidJob("the function of the unique key returned an empty text")
    return text


def parse_uniqueness(unique: Fields | Unique | None) -> Uniqueness | None:
    """Return the uniqueness that a job declares; None if it declares none. Raises
    `DefinitionError`.
    """
    if unique is None or unique is False:
        return None
    if not isinstance(unique, Unique):
        return Uniqueness(_parse_fields(unique))
    rule = read_key_rule(unique, DefinitionError) or UNTIL_FINISHED
    if unique.key is None:
        return Uniqueness(_parse_fields(True if unique.fields is None else unique.fields), rule)
    if unique.fields is not None:
        raise DefinitionError("Unique takes fields or a key, not both")
    if not callable(unique.key):
        raise DefinitionError(
            f"the key of Unique is a function of the job that returns a text, not {unique.key!r}"
        )
    return Uniqueness((), rule, unique.key)


def _parse_fields(fields: object) -> tuple[str, ...]:
    names = (ALL_FIELDS,) if fields is True else (fields,) if isinstance(fields, str) else fields
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(name, str) for name in names)
    ):
        raise DefinitionError(
            f"unique must be True, names of arguments or a Unique, not {fields!r}"
        )
    return tuple(names)


def read_key_rule(unique: Unique, error: type[InvalidJob | DefinitionError]) -> KeyRule | None:
    """Return how the key is held and what a duplicate does; None if nothing is said of this. Raises
    `error`, which names the option that is wrong.
    """
    given = {
        name: value
        for name, value in get_given_values(unique).items()
        if name not in ("fields", "key")
    }
    if not given:
        return None
    seconds = {
        name: require_positive_seconds(name, given[name], error)
        for name in ("for_", "debounce", "max_wait", "throttle")
        if name in given
    }
    _check_combination(given, error)
    states = _read_states(given.get("while_"), error)
    on_duplicate: OnDuplicate = given.get("on_duplicate", "reject")
    if on_duplicate not in get_args(OnDuplicate):
        allowed = ", ".join(map(repr, get_args(OnDuplicate)))
        raise error(f"on_duplicate must be one of {allowed}, not {on_duplicate!r}")
    if "throttle" in given:
        return KeyRule(seconds["throttle"], None, "existing", throttles=True)
    if "debounce" in given:
        debounce, max_wait = seconds["debounce"], seconds.get("max_wait")
        if max_wait is not None and max_wait < debounce:
            raise error(f"max_wait must be at least debounce, {debounce:g} s, not {max_wait:g} s")
        if states is not None and not UNFINISHED.issuperset(states):
            raise error("debounce replaces a waiting job, so while_ names unfinished states")
        states = sort_states(WAITING) if states is None else states
        return KeyRule(None, states, "replace", debounce, max_wait)
    unique_for = seconds.get("for_")
    if states is not None and unique_for is None:
        if not UNFINISHED.issuperset(states):
            finished = ", ".join(sorted(FINISHED.intersection(states)))
            raise error(
                f"while_ names {finished}, so it needs for_: the seconds after which the key is "
                "free again"
            )
        states = None if UNFINISHED.issubset(states) else states
    return KeyRule(unique_for, states, on_duplicate)


_EXCLUSIVE = (
    ("throttle", ("debounce", "max_wait", "for_", "while_", "on_duplicate")),
    ("debounce", ("for_", "on_duplicate")),
)


def _check_combination(given: dict[str, Any], error: type[InvalidJob | DefinitionError]) -> None:
    for name, others in _EXCLUSIVE:
        for other in others:
            if name in given and other in given and given[other] not in _IMPLIED.get(name, ()):
                raise error(f"pass {name} or {other}, not both")
    if "max_wait" in given and "debounce" not in given:
        raise error("max_wait needs debounce: the seconds from each enqueue until the job is due")


_IMPLIED = {"debounce": ("replace",), "throttle": ("existing",)}
"""What an option says already, so that it may be written as well."""


def _read_states(
    value: object, error: type[InvalidJob | DefinitionError]
) -> tuple[State, ...] | None:
    if value is None:
        return None
    if value == "waiting":
        return sort_states(WAITING | {State.SUSPENDED})
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
            "while_ must be 'waiting', 'unfinished' or a set of states "
            f"({', '.join(state.value for state in State)}), not {value!r}"
        )
    return sort_states(State(state) for state in value)
