"""Heaps that are read without changing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import TypeVar

T = TypeVar("T")


def iter_heap(heap: Sequence[T]) -> Iterator[T]:
    """Yield the entries of a heap in their order, without removing them.

    >>> list(iter_heap([1, 4, 2, 5]))
    [1, 2, 4, 5]
    """
    ahead = [(heap[0], 0)] if heap else []
    while ahead:
        entry, n = heappop(ahead)
        yield entry
        for child in range(2 * n + 1, min(2 * n + 3, len(heap))):
            heappush(ahead, (heap[child], child))
