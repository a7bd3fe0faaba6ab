"""SQL statements and Lua scripts: the `.sql` and `.lua` files beside a backend's Python modules.

Each file is one operation. It begins with a comment that states its inputs, its result, what it
locks and why it is atomic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

LABELS = ("Inputs", "Result", "Locks", "Atomic")
SUFFIXES = (".sql", ".lua")


class Statements:
    """The statements of one package (`nimburion.backends.sqlite`), by file name without suffix.

    Raises:
        LookupError: there is no file for the statement.
        ValueError: the header of a file lacks a required label.
    """

    __slots__ = ("_headers", "_package", "_texts")

    def __init__(self, package: str) -> None:
        self._package = package
        self._headers: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        for file in resources.files(package).iterdir():
            if file.name.endswith(SUFFIXES):
                name = file.name.rpartition(".")[0]
                self._headers[name], self._texts[name] = split(file)

    def __getitem__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            raise LookupError(f"{self._package} has no statement {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def said(self, name: str, label: str) -> str:
        """Return the text after a label in the header of a statement, on the same line.

        The result is empty if the header does not have the label.
        """
        found = re.search(rf"^--[ \t]*{label}:(.*)$", self._headers[name], re.MULTILINE)
        return found[1].strip() if found else ""


def split(file: Traversable) -> tuple[str, str]:
    """Return the header of a file, and the text below it."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    count = next((n for n, line in enumerate(lines) if not line.startswith("--")), len(lines))
    header = "".join(lines[:count])
    check_header(file.name, header)
    return header, "".join(lines[count:]).strip()


def check_header(name: str, header: str) -> None:
    """Raise `ValueError` unless the header has a text after every label."""
    for label in LABELS:
        if not re.search(rf"^--\s*{label}:\s*\S", header, re.MULTILINE):
            raise ValueError(f"{name}: its header must say '-- {label}: …'")


def read_migrations(package: str, folder: str) -> list[tuple[int, str, str]]:
    """Return number, name and text of each file `NNNN_name.sql` in a folder of the package, in
    order.
    """
    found = []
    for file in resources.files(package).joinpath(folder).iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append((int(match[1]), match[2].replace("_", " "), split(file)[1]))
    return sorted(found)
