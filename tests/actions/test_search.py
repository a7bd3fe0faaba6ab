"""The qualifiers of a search are a filter of jobs."""

from __future__ import annotations

from nimburion.actions.search import QUALIFIERS, parse_search
from nimburion.core.job import State


def test_a_search_is_a_filter() -> None:
    which = parse_search("state:failed,retrying queue:mail name:send failures:2 created:2h", 7210.0)
    assert which.states == frozenset({State.FAILED, State.RETRYING})
    assert (which.queue, which.name, which.min_failures) == ("mail", "send", 2)
    assert which.created_from == 10.0
    assert parse_search("a b id:c", 0.0).ids == ("a", "b", "c")
    assert parse_search('tenant:"acme inc" queue:a', 0.0).tenant == "acme inc"
    assert parse_search(" ", 0.0) == parse_search("", 0.0)
    for example in QUALIFIERS.values():
        word = example.partition(" ")[0].rstrip(",").replace("…", "")
        assert parse_search(word, 0.0) != parse_search("", 0.0), word
