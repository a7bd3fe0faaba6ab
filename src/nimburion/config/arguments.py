"""Settings from the arguments of `load`: one keyword a section, `jobs={"concurrency": 20}`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import msgspec

from nimburion.config.tree import DEEPEST, Path, Place, Written, refusal

PLACE = Place("load()")


def read_arguments(arguments: Mapping[str, object]) -> Written | None:
    """The tree of the arguments; None when there are none."""
    return written_of(arguments, ()) if arguments else None


def written_of(value: object, path: Path) -> Written:
    """A value of Python as if it had been written: the same rules hold for it."""
    if len(path) > DEEPEST:
        raise refusal(PLACE, (), f"nested deeper than {DEEPEST} levels")
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        pairs = {str(key): written_of(one, (*path, str(key))) for key, one in value.items()}
        return Written(pairs, PLACE)
    if isinstance(value, list | tuple):
        items = [written_of(one, (*path, index)) for index, one in enumerate(value)]
        return Written(items, PLACE)
    if isinstance(value, timedelta):
        return Written(value.total_seconds(), PLACE)
    if value is None or isinstance(value, bool | int | float | str):
        return Written(value, PLACE)
    problem = f"a {type(value).__name__} cannot be a setting"
    raise refusal(PLACE, path, problem)
