"""Counts the operations of the contract of a backend.

Usage: python -m tests.budgets.contract

Prints the operations of each protocol of `core/backend.py`, and their number. Every public method
and property counts, those of optional capabilities and of the lifecycle too. The four properties of
`Backend` that hold its protocols are no operations.
"""

from __future__ import annotations

import inspect
import sys
from typing import Protocol

from nimburion.core import backend


def list_operations() -> dict[str, list[str]]:
    """Return the operations that each protocol declares itself, in their order."""
    protocols = [
        found
        for found in vars(backend).values()
        if inspect.isclass(found)
        and Protocol in found.__mro__
        and found not in (Protocol, backend.Backend)
    ]
    return {
        protocol.__name__: [
            name
            for name, member in vars(protocol).items()
            if not name.startswith("_")
            and (inspect.isfunction(member) or isinstance(member, property))
        ]
        for protocol in protocols
    }


def main() -> None:
    """Print the operations and their number."""
    found = {protocol: names for protocol, names in list_operations().items() if names}
    for protocol, names in found.items():
        sys.stdout.write(f"{protocol} ({len(names)}): {', '.join(names)}\n")
    sys.stdout.write(f"operations: {sum(map(len, found.values()))}\n")


if __name__ == "__main__":
    main()
