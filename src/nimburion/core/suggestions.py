"""Suggest the nearest known word for an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def describe_unknown(what: str, given: Iterable[str], known: Collection[str]) -> str | None:
    """Return a message about the first word of `given` that is not known, or None.

    >>> describe_unknown("option", ["priorty"], ["priority", "queue"])
    "there is no option 'priorty'; did you mean 'priority'?"
    >>> describe_unknown("option", ["x"], ["priority", "queue"])
    "there is no option 'x'; known: priority, queue"
    """
    for word in given:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            return f"there is no {what} {word!r}; {hint}"
    return None
