"""Settings as they were written: values with their places."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nimburion.core.errors import ConfigurationError

Scalar = None | bool | int | float | str
Path = tuple[str | int, ...]
"""Keys and list positions from the root: `("jobs", "queues", 0, "name")`."""


DEEPEST = 32


class Place(msgspec.Struct, frozen=True):
    """The place of a setting: `config.yaml:12`, `NIMBURION_JOBS__URL`, `load()`."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Written(msgspec.Struct, frozen=True):
    """A value and its place. `text` is the source text of a scalar; None if it was quoted."""

    value: Scalar | dict[str, Written] | list[Written]
    place: Place
    text: str | None = None


def overlay(lower: Written, upper: Written) -> Written:
    """Return `upper` over `lower`: maps are merged by key, all other values are replaced."""
    if not isinstance(lower.value, dict) or not isinstance(upper.value, dict):
        return upper
    merged: dict[str, Written] = dict(lower.value)
    for key, value in upper.value.items():
        merged[key] = overlay(merged[key], value) if key in merged else value
    return Written(merged, lower.place)


def get_part(tree: Written | None, key: str) -> Written | None:
    """Return the value of `key`, or None if this is not a map or lacks the key."""
    return tree.value.get(key) if tree is not None and isinstance(tree.value, dict) else None


def drop_keys(tree: Written | None, keys: frozenset[str]) -> Written | None:
    """Return the map without these keys."""
    if tree is None or not isinstance(tree.value, dict):
        return tree
    kept = {key: value for key, value in tree.value.items() if key not in keys}
    return Written(kept, tree.place)


def nest(path: tuple[str, ...], value: Written) -> Written:
    """Return nested maps that hold only `value`, at `path`."""
    for key in reversed(path):
        value = Written({key: value}, value.place)
    return value


def format_path(path: Path) -> str:
    """Return a path as text: `jobs.queues[0].name`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.lstrip(".")


def make_refusal(place: Place, path: Path, problem: str) -> ConfigurationError:
    """Return the error for a setting, in the form of all errors: place, key path, problem."""
    where = f"{place}: {format_path(path)}" if path else str(place)
    return ConfigurationError(f"{where}: {problem}")


def describe_type(value: object) -> str:
    """Return the kind of a value for messages, without showing a text or number."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a text" if isinstance(value, str) else "a number"
