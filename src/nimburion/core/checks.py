"""What people and tools ask a store, and what it answers."""

from __future__ import annotations

from typing import Literal

import msgspec

from nimburion.core.errors import (
    BackendError,
    BackendReplaced,
    FormatMismatch,
    NimburionError,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
)

Verdict = Literal["good", "warning", "error"]
"""Of a finding. `warning`: it works, and something may be lost or slow. `error`: it does not."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that an examination of a store found.

    >>> Finding("disk", "warning", "300 MiB are free", "make room").verdict
    'warning'
    """

    subject: str
    """What was looked at, in one or two words: `durability`, `write lock`."""
    verdict: Verdict
    text: str
    """One line: what was found, with its figures."""
    advice: str = ""
    """One line: what to do; empty where all is good."""


_ADVICE: tuple[tuple[type[NimburionError], str], ...] = (
    (StoreFull, "make room; whoever waits goes on by itself"),
    (StoreReadOnly, "let this user write there, or choose another store"),
    (BackendReplaced, "end every process that uses it, put the right file in place, start again"),
    (StoreCorrupt, "stop every process that uses it, and keep a copy before anything else"),
    (FormatMismatch, "run the nimburion version that fits, or choose another store"),
    (BackendError, "bring the store back or correct its address; workers go on by themselves"),
    (NimburionError, "correct what the configuration says of the store"),
)


def finding_of(subject: str, error: NimburionError) -> Finding:
    """What a store refused, as an examination says it."""
    advice = next(text for kind, text in _ADVICE if isinstance(error, kind))
    return Finding(subject, "error", " ".join(str(error).split()), advice)
