"""Parse YAML into a tree with line numbers: YAML 1.2 scalars, no anchors, aliases or tags.

PyYAML does the scanning, and this module reads its events one by one. It therefore constructs no
objects, detects repeated keys, and limits the depth before it recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

import yaml

from nimburion.config.scalars import parse_scalar
from nimburion.config.tree import DEEPEST, Path, Place, Written, make_refusal

_Loader: type[yaml.CSafeLoader | yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_yaml(text: str, source: str, *, numbered: bool = True, path: Path = ()) -> Written:
    """Return the tree of a YAML document. An empty document has the value None.

    `numbered`: whether places have line numbers. `path`: the path of the text in the settings, for
    messages.
    """
    return _Reader(source, path, numbered=numbered).read(text)


class _Mark(Protocol):
    line: int


class _Reader:
    """A reader of one document, event by event."""

    def __init__(self, source: str, path: Path, *, numbered: bool) -> None:
        self._source = source
        self._path = path
        self._numbered = numbered

    def read(self, text: str) -> Written:
        self._check_characters(text)
        try:
            return self._document(yaml.parse(text, Loader=_Loader))
        except yaml.MarkedYAMLError as error:
            raise self._make_error(error.problem_mark, f"invalid YAML: {error.problem}") from None
        except yaml.YAMLError:
            raise self._make_error(None, "invalid YAML: unreadable text") from None

    def _check_characters(self, text: str) -> None:
        found = _UNPRINTABLE.search(text)
        if found:
            place = self._make_place(text.count("\n", 0, found.start()))
            shown = f"U+{ord(found[0]):04X}"
            raise make_refusal(place, self._path, f"the character {shown} is not allowed in YAML")

    def _document(self, events: Iterator[yaml.Event]) -> Written:
        tree: Written | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if tree is not None:
                    raise self._make_error(
                        event.start_mark, "there is a second document; only one is allowed"
                    )
                tree = self._read_node(next(events), events, self._path)
        return tree or Written(None, self._make_place(0))

    def _read_node(self, event: yaml.Event, events: Iterator[yaml.Event], path: Path) -> Written:
        self._check_plain(event, path)
        place = self._find_place(event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            return _read_scalar(event, place)
        if len(path) >= DEEPEST:
            raise make_refusal(place, (), f"nested deeper than {DEEPEST} levels")
        if isinstance(event, yaml.SequenceStartEvent):
            return Written(self._read_items(events, path), place)
        return Written(self._read_pairs(events, path), place)

    def _read_items(self, events: Iterator[yaml.Event], path: Path) -> list[Written]:
        items: list[Written] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._read_node(event, events, (*path, len(items))))
        return items

    def _read_pairs(self, events: Iterator[yaml.Event], path: Path) -> dict[str, Written]:
        pairs: dict[str, Written] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._read_key(event, path)
            place = self._find_place(event.start_mark)
            if key in pairs:
                first = pairs[key].place.line
                also = f"; the first is in line {first}" if first else ""
                raise make_refusal(place, (*path, key), f"this key is repeated{also}")
            value = self._read_node(next(events), events, (*path, key))
            pairs[key] = Written(value.value, place, value.text)
        return pairs

    def _read_key(self, event: yaml.Event, path: Path) -> str:
        self._check_plain(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value)
        raise self._make_error(event.start_mark, "a key must be a word, not a list or a map")

    def _check_plain(self, event: yaml.Event, path: Path) -> None:
        """Reject anchors, aliases and tags: they can hide or multiply content, or name a type to
        construct.
        """
        place = self._find_place(event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise make_refusal(
                place, path, "anchors (&) and aliases (*) are not allowed; repeat it"
            )
        if getattr(event, "tag", None) is not None:
            raise make_refusal(place, path, "tags (!) are not allowed; write the plain value")

    def _make_place(self, line: int) -> Place:
        return Place(self._source, line + 1 if self._numbered else None)

    def _find_place(self, mark: _Mark | None) -> Place:
        return self._make_place(mark.line if mark else 0)

    def _make_error(self, mark: _Mark | None, problem: str) -> Exception:
        return make_refusal(self._find_place(mark), self._path, problem)


def _read_scalar(event: yaml.ScalarEvent, place: Place) -> Written:
    text = str(event.value)
    plain = bool(event.implicit[0])
    return Written(parse_scalar(text), place, text) if plain else Written(text, place)
