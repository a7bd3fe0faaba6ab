"""Ids are UUIDs that say when they were made, and rise."""

from __future__ import annotations

import uuid

import pytest

from nimburion.core.ids import JobIds

NOW = 1_700_000_000.0


def seeded(count: int) -> bytes:
    return bytes(n * 37 % 256 for n in range(count))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 300])
def test_many_are_what_one_after_another_would_be(count: int) -> None:
    alone, together = JobIds(lambda: NOW, bytes), JobIds(lambda: NOW, bytes)
    assert together.make_many(count) == [alone.make() for _ in range(count)]
    assert together.make() == alone.make()


def test_they_are_of_version_7_and_rise() -> None:
    ids = JobIds(lambda: NOW, seeded)
    made = [ids.make(), *ids.make_many(1000), ids.make(), *ids.make_many(2)]
    assert made == sorted(set(made))
    for one in map(uuid.UUID, made):
        assert (one.version, one.variant) == (7, uuid.RFC_4122)
        assert one.int >> 80 == int(NOW * 1000)
