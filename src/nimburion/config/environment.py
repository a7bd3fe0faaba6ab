"""Settings from the environment (`NIMBURION_JOBS__CONCURRENCY=20`) and from arguments.

`__` separates the steps of a key path. Lists and maps are written as YAML flow:
`NIMBURION_JOBS__QUEUES='[{name: make_job, priority: 5}]'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import reduce

import msgspec

from nimburion.config.scalars import parse_scalar
from nimburion.config.schema import JOBS, Section, describe_unknown_key, find_shape
from nimburion.config.tree import (
    DEEPEST,
    Path,
    Place,
    Written,
    format_path,
    make_refusal,
    nest,
    overlay,
)
from nimburion.config.value_types import ValueType

PREFIX = "NIMBURION_"
FILE_VARIABLE = "NIMBURION_CONFIG"


def read_environment(environment: Mapping[str, str]) -> Written | None:
    """Return the combined tree of all variables of nimburion; None if there are none."""
    ours = sorted(name for name in environment if name.startswith(PREFIX))
    found = [parse_variable(name, environment[name]) for name in ours if name != FILE_VARIABLE]
    settings = [setting for setting in found if setting is not None]
    return reduce(overlay, settings) if settings else None


def parse_variable(variable: str, text: str) -> Written | None:
    """Return the tree of one variable; None if it is not a setting.

    A name with `__` must be a setting. A name without it may belong to other software (Kubernetes
    sets `NIMBURION_PORT` for a service named `nimburion`). It is an error if it spells a setting
    with `_` in place of `__`.
    """
    path = tuple(variable.removeprefix(PREFIX).lower().split("__"))
    place = Place(variable)
    shape = find_shape(path)
    if shape is None:
        reject_unless_foreign(variable, path, place)
        return None
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise make_refusal(place, path, "not UTF-8")
    if isinstance(shape, ValueType):
        return nest(path, Written(parse_scalar(text), place, text))
    from nimburion.config.yaml_reader import read_yaml  # imports PyYAML, so only if needed

    return nest(path, read_yaml(text, variable, numbered=False, path=path))


def reject_unless_foreign(variable: str, path: tuple[str, ...], place: Place) -> None:
    """Raise `ConfigurationError` for a variable that is meant as a setting."""
    if len(path) > 1:
        raise make_refusal(place, path, describe_unknown_path(path))
    (name,) = path or ("",)
    meant = name.removeprefix("jobs_")
    if meant in JOBS.keys and meant != name:
        right = f"{PREFIX}JOBS__{meant.upper()}"
        raise make_refusal(place, (), f"is not read; {variable} must be spelled {right}")


def describe_unknown_path(path: tuple[str, ...]) -> str:
    """Return a message that names the unknown step of the path."""
    depth = next(depth for depth in range(len(path)) if find_shape(path[: depth + 1]) is None)
    above = find_shape(path[:depth])
    if isinstance(above, Section):
        return describe_unknown_key(path[depth], above.keys, path[:depth])
    return f"no such setting; {format_path(path[:depth])} has no parts of its own"


PLACE = Place("load()")


def read_arguments(arguments: Mapping[str, object], place: Place = PLACE) -> Written | None:
    """Return the tree of the arguments; None if there are none."""
    return to_written(arguments, (), place) if arguments else None


def to_written(value: object, path: Path, place: Place) -> Written:
    """Return a Python value as a tree, so that the rules for written settings apply to it."""
    if len(path) > DEEPEST:
        raise make_refusal(place, (), f"nested deeper than {DEEPEST} levels")
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        pairs = {
            str(key): to_written(item, (*path, str(key)), place) for key, item in value.items()
        }
        return Written(pairs, place)
    if isinstance(value, list | tuple):
        items = [to_written(item, (*path, index), place) for index, item in enumerate(value)]
        return Written(items, place)
    if isinstance(value, timedelta):
        return Written(value.total_seconds(), place)
    if value is None or isinstance(value, bool | int | float | str):
        return Written(value, place)
    problem = f"a {type(value).__name__} cannot be a setting"
    raise make_refusal(place, path, problem)
