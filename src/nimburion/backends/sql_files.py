"""The SQL statements and Lua scripts of a backend: `.sql` and `.lua` files beside its Python.

An SQL file holds the statements of one topic. The comment at its top says what holds for all of
them; each begins with a line `-- name: NAME`, and the comment lines below that describe it. A Lua
file holds one script, or a part that several scripts share, and is named after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

_NAME_LINE = re.compile(r"^--[ \t]*name:[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Statements(dict[str, str]):
    """The SQL statements in one folder of a package, by name; sorted by file, in order within it.

    Raises:
        LookupError: there is no statement of this name.
        ValueError: a file is not as this module describes it, or two statements share a name.
    """

    __slots__ = ("_folder",)

    def __init__(self, package: str, folder: str) -> None:
        super().__init__()
        self._folder = f"{package}: {folder}"
        for file in list_files(package, folder, ".sql"):
            for name, text in parse_statements(file.name, file.read_text(encoding="utf-8")):
                if name in self:
                    raise ValueError(f"{file.name}: there are two statements {name!r}")
                self[name] = text

    def __missing__(self, name: str) -> str:
        raise LookupError(f"{self._folder} has no statement {name!r}")


class LuaFiles:
    """The Lua files in some folders of a package, by name without suffix.

    Raises:
        LookupError: there is no file of this name.
        ValueError: two files share a name.
    """

    __slots__ = ("_headers", "_package", "_texts")

    def __init__(self, package: str, *folders: str) -> None:
        self._package = package
        self._headers: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        for folder in folders:
            for file in list_files(package, folder, ".lua"):
                name = file.name.removesuffix(".lua")
                if name in self._texts:
                    raise ValueError(f"{folder}: there are two Lua files {name!r}")
                self._headers[name], self._texts[name] = split_comment(
                    file.read_text(encoding="utf-8")
                )

    def __getitem__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            raise LookupError(f"{self._package} has no Lua file {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def read_header_field(self, name: str, label: str) -> str:
        """Return the text after a label in the header of a file, on the same line.

        If several lines have the label, their texts are joined. If none has, the result is empty.
        """
        found = re.findall(rf"^--[ \t]*{label}:(.*)$", self._headers[name], re.MULTILINE)
        return " ".join([text.strip() for text in found])


@cache
def read_statements(package: str, folder: str) -> Statements:
    """Return the statements in a folder of a package. The files are read once a process."""
    return Statements(package, folder)


def list_files(package: str, folder: str, suffix: str) -> list[Path]:
    """Return the files in a folder of a package that have this suffix, sorted by name.

    The package must be installed as files. `importlib.resources` could also read it from a zip
    file, but loads 17 modules.
    """
    [root] = import_module(package).__path__
    return sorted(path for path in Path(root, folder).iterdir() if path.suffix == suffix)


def parse_statements(file: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each statement, without comments around it and its last semicolon.

    Raises:
        ValueError: SQL before the first name, a name that is no identifier in lower case, or a
            name without a statement.
    """
    head, *parts = _NAME_LINE.split(text)
    if split_comment(head)[1]:
        raise ValueError(f"{file}: there is SQL before the first line '-- name: …'")
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{file}: {name!r} cannot name a statement; write a-z, 0-9 and _")
        statement = split_comment(part)[1].removesuffix(";")
        if not statement:
            raise ValueError(f"{file}: statement {name!r} is empty")
        yield name, statement


def split_comment(text: str) -> tuple[str, str]:
    """Return the comment at the beginning of a text, with its blank lines, and the rest."""
    lines = text.splitlines(keepends=True)
    is_comment = [line.startswith("--") or not line.strip() for line in lines]
    count = is_comment.index(False) if False in is_comment else len(lines)
    return "".join(lines[:count]), "".join(lines[count:]).strip()


def read_migrations(package: str, folder: str) -> list[tuple[int, str, str]]:
    """Return number, name and text of each file `NNNN_name.sql` in a folder of the package, in
    order.
    """
    found = []
    for file in list_files(package, folder, ".sql"):
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            _, text = split_comment(file.read_text(encoding="utf-8"))
            found.append((int(match[1]), match[2].replace("_", " "), text))
    return sorted(found)
