"""What goes wrong between a store and its server, in the words of the contract."""

from __future__ import annotations

from collections.abc import Callable

from nimburion.core.errors import BackendUnavailable, NimburionError, NotSupported
from nimburion.core.redaction import redact_urls

Meaning = Callable[[str, str], NimburionError]
"""Makes an error of the name of the store and what its server said."""


def saying(kind: Callable[[str], NimburionError], words: str) -> Meaning:
    """Errors of this kind; `{where}` in the words stands for the store, `{said}` for what the
    server said."""
    return lambda where, said: kind(words.format(where=where, said=redact_urls(said)))


def no_roles(where: str, role: str) -> NotSupported:
    """The error of `grant` where a backend knows no roles."""
    return NotSupported(f"{where} knows no roles; nothing can be granted to {role!r}")


def not_applied(problem: str) -> BackendUnavailable:
    """The error of a call of which nothing was written."""
    return BackendUnavailable(redact_urls(problem), outcome="not applied")


def unanswered(where: str, problem: str, *, sent: bool) -> BackendUnavailable:
    """The error of a call whose answer never came. `sent`: at least a part of the request had left,
    so that nobody knows whether it was applied."""
    if sent:
        return BackendUnavailable(
            f"{where}: {redact_urls(problem)}; it may have been applied or not"
        )
    return not_applied(f"{where}: {problem}; nothing was written")
