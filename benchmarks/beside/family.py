"""A family: a kind of server, and who runs on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from benchmarks.beside.subjects import Subject
from tests.servers.binaries import Binary

Column = tuple[str, str, int]
"""The name of a figure, the head of its column, and its digits."""


class Serving(Protocol):
    """A server that runs."""

    @property
    def url(self) -> str: ...

    @property
    def pid(self) -> int: ...


@dataclass(frozen=True)
class Family:
    """What the tables need to know of a kind of server."""

    name: str
    """The word on the command line, and in the names of the results."""
    title: str
    ours: Subject
    bare: Subject
    """No job system: one write after another."""
    peers: Mapping[str, Subject]
    program: Callable[[], Binary]
    serve: Callable[[Binary, str], AbstractContextManager[Serving]]
    """Starts a fresh server under a condition, "" for the usual one."""
    settings_text: str
    """How the server was set, for the heading."""
    drivers: tuple[str, ...]
    """Our own distributions whose versions matter."""
    drained: tuple[Column, ...]
    """What a drain's table shows of the server, besides its processor time."""
    idle: tuple[Column, ...]
    idle_seconds: int
