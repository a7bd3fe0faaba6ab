"""Which errors share a fingerprint."""

from __future__ import annotations

import pytest

from nimburion.core.text.fingerprints import compute_fingerprint


def fingerprint(message: str, kind: str = "failure", place: str = "app.send") -> str:
    return compute_fingerprint(kind, "ValueError", place, message)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("no user 17", "no user 4"),
        ("no key 'ann'", "no key 'bob'"),
        ('no key "ann"', 'no key ""'),
        ("object at 0x7f11", "object at 0xaaaa"),
        (
            "job 0192f0c1-1111-7abc-8def-001122334455 failed",
            "job ffffffff-2222-7abc-8def-aabbccddeeff failed",
        ),
        ("token abcdefgh12345678 is over", "token zzzzzzzz00000001 is over"),
    ],
)
def test_numbers_ids_and_quoted_values_make_no_difference(first: str, second: str) -> None:
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.parametrize(
    "other",
    [
        fingerprint("no such file"),
        fingerprint("no user 17", kind="timeout"),
        fingerprint("no user 17", place="app.receive"),
    ],
)
def test_other_words_kinds_and_places_do(other: str) -> None:
    assert other != fingerprint("no user 17")


def test_a_fingerprint_is_sixteen_hexadecimal_digits() -> None:
    assert len(fingerprint("x")) == 16
    assert int(fingerprint("\ud800 is no text"), 16) >= 0


def test_a_long_message_is_read_in_linear_time() -> None:
    """A message may be hostile."""
    assert fingerprint("a" * 1_000_000) == fingerprint("a" * 2_000_000)
    assert fingerprint("'" * 500) == fingerprint("'" * 500 + "tail")
