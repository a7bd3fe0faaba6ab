"""Parts of messages: the nearest known word, and the words of another library."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

_NONE_RENAMED: Mapping[str, str] = MappingProxyType({})
_SIMILARITY = 0.6
"""The least ratio of `difflib` at which a word is suggested. With less, `eta` suggests `tags`."""


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most similar to `word`, or None if none is similar.

    >>> find_nearest("priorty", ["queue", "priority"])
    'priority'
    """
    import difflib  # only a wrong word needs it

    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=_SIMILARITY)), None)


def describe_unknown(
    what: str,
    given: Iterable[str],
    known: Collection[str],
    renamed: Mapping[str, str] = _NONE_RENAMED,
) -> str | None:
    """Return a message about the first word of `given` that is not known, or None.

    `renamed` has the new names of words that earlier versions knew.

    >>> describe_unknown("option", ["priorty"], ["priority", "queue"])
    "there is no option 'priorty'; did you mean 'priority'?"
    >>> describe_unknown("option", ["x"], ["priority", "queue"])
    "there is no option 'x'; known: priority, queue"
    >>> describe_unknown("option", ["rank"], ["priority", "queue"], {"rank": "priority"})
    "there is no option 'rank'; it is now 'priority'"
    """
    for word in given:
        if word not in known:
            if word in renamed:
                return f"there is no {what} {word!r}; it is now {renamed[word]!r}"
            near = find_nearest(word, known)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(known))}"
            return f"there is no {what} {word!r}; {hint}"
    return None


def lower_first(text: str) -> str:
    """Return a sentence of another library as a part of a sentence: in lower case, unless it begins
    with a name in capitals."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
