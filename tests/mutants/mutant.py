"""What a breakage is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """What to break: `original` stands exactly once in the file below `src/nimburion`."""

    name: str
    file: str
    original: str
    replacement: str
    selection: tuple[str, ...]
    """Arguments of pytest."""
    deep: bool = False
    """Too slow for every run."""
