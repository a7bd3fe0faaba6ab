"""Results of health checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from nimburion.core.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendReplaced,
    FormatMismatch,
    NimburionError,
)

Verdict = Literal["good", "warning", "error"]
"""The verdict of a check. `warning`: it works, but data may be lost or calls are slow. `error`:
it does not work.
"""


class CheckResult(msgspec.Struct, frozen=True):
    """One thing that an examination of a backend found.

    >>> CheckResult("check_disk", "warning", "300 MiB are free", "make room").verdict
    'warning'
    """

    subject: str
    """What was checked, in one or two words: `durability`, `write lock`."""
    verdict: Verdict
    text: str
    """One line: the result, with its figures."""
    advice: str = ""
    """One line: what to do; empty if the verdict is `good`."""


_ADVICE: tuple[tuple[type[NimburionError], str], ...] = (
    (BackendFull, "free some space; workers then continue without a restart"),
    (BackendReadOnly, "grant this user write access there, or choose another backend"),
    (BackendReplaced, "stop every process that uses it, restore the right file and start again"),
    (BackendCorrupt, "stop every process that uses it, and copy it before any repair"),
    (FormatMismatch, "run a nimburion version that reads this format, or choose another backend"),
    (BackendError, "start the backend or correct its URL; workers continue without a restart"),
    (NimburionError, "correct the backend settings of the configuration"),
)


def make_failed_check(subject: str, error: NimburionError) -> CheckResult:
    """Return the check result for an error that the backend raised."""
    advice = next(text for kind, text in _ADVICE if isinstance(error, kind))
    return CheckResult(subject, "error", " ".join(str(error).split()), advice)


def make_timeout_check(seconds: float) -> CheckResult:
    """Return the check result for a backend that did not answer within `seconds`."""
    advice = "check the URL, and the network between this host and the backend"
    return CheckResult("answer", "error", f"none within {seconds:.0f} s", advice)


def find_worst(found: Sequence[CheckResult]) -> Verdict:
    """Return the most severe verdict."""
    verdicts = {result.verdict for result in found}
    for verdict in _BY_SEVERITY:
        if verdict in verdicts:
            return verdict
    return "good"


_BY_SEVERITY: tuple[Verdict, ...] = ("error", "warning", "good")
