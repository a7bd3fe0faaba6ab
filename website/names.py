"""The table of all public names and parameters, one line each: `docs/reference/names.md`.

python -m website.names docs/reference/names.md
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, get_overloads

import nimburion
from nimburion import errors
from website.reference import (
    ALSO_SHOWN,
    MADE_BY_US,
    ROOT,
    Member,
    describe_class,
    find_function,
    find_object,
    format_definition,
    list_members,
    own_docstring,
    read_string,
)

_HEADER = """# All public names

Each name that you import from `nimburion`, its methods and fields, and the options that they take,
with the first sentence of its docstring. The types `EnqueueOptions`, `PolicyOptions`,
`ScheduleOptions` and `RegisteredJob` are in `nimburion.types`. The [public API](api.md) groups them
by purpose. Generated file. To regenerate it, run

    python -m website.names docs/reference/names.md
"""


class Row(NamedTuple):
    """One public name."""

    name: str
    """Qualified by the class: `Processor.enqueue`."""
    signatures: tuple[str, ...]
    """The parameters with their types and the type of the value, for each overload."""
    docstring: str


def make_page() -> str:
    """Return the page as Markdown."""
    parts = [_HEADER]
    for title, names in list_groups():
        rows = [row for name, value in names for row in list_rows(name, value)]
        parts.append(f"## {title}\n\n| name | parameters and type | meaning |\n| --- | --- | --- |")
        parts[-1] += "".join(f"\n{format_row(row)}" for row in rows)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def list_groups() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Yield the parts of the page with their public objects."""
    for name in nimburion.__all__:
        value = getattr(nimburion, name)
        if not isinstance(value, ModuleType):
            yield f"`{name}`", [(name, value)]
    for path in ALSO_SHOWN[ROOT]:
        value = find_object(path)
        yield f"`{value.__name__}`", [(value.__name__, value)]
    yield "`nimburion.errors`", [(name, getattr(errors, name)) for name in errors.__all__]


def list_rows(name: str, value: Any) -> Iterator[Row]:  # noqa: ANN401 (any public object)
    """Yield a public object, and its members if it is a class."""
    if not inspect.isclass(value):
        yield Row(name, format_overloads(value), inspect.getdoc(value) or "")
        return
    constructor = join_lines(describe_class(name, value)).removeprefix(f"class {name}")
    docstring = own_docstring(value)
    yield Row(name, (constructor,), docstring)
    arguments = read_arguments(docstring)
    for member in [*list_attributes(value), *list_members(value)]:
        signatures = re.split(r"\n(?=def |async def )", member.signature)
        yield Row(
            f"{name}.{member.name}",
            tuple(format_signature(member.name, one) for one in signatures),
            member.docstring or arguments.get(member.name, ""),
        )


def read_arguments(docstring: str) -> dict[str, str]:
    """Return the texts of the section `Args:` of a docstring, by the names of the arguments."""
    _, _, section = docstring.partition("Args:\n")
    items = re.split(r"\n(?=\w)", textwrap.dedent(section).strip())
    pairs = [" ".join(item.split()).partition(": ") for item in items]
    return {name: text[:1].upper() + text[1:] for name, _, text in pairs}


def list_attributes(value: type) -> Iterator[Member]:
    """Yield the public attributes that the constructors of a class and its bases assign."""
    seen = set[str]()
    for owner in value.__mro__ if value.__name__ not in MADE_BY_US else ():
        constructor = vars(owner).get("__init__")
        node = find_function(constructor) if constructor is not None else None
        if node is None or not owner.__module__.startswith("nimburion"):
            continue
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Attribute):
                name = statement.target.attr
                if not name.startswith("_") and name not in seen:
                    seen.add(name)
                    signature = f"{name}: {ast.unparse(statement.annotation)}"
                    yield Member(name, signature, read_string(after), is_field=True)


def format_overloads(value: FunctionType) -> tuple[str, ...]:
    """Return the parameters of a function, or of each of its overloads."""
    nodes = map(find_function, get_overloads(value) or [value])
    return tuple(
        format_signature(node.name, format_definition(node)) for node in nodes if node is not None
    )


def format_signature(name: str, code: str) -> str:
    """Return a signature on one line without `def` and the name."""
    text = re.sub(r"^(async )?def ", r"\1", join_lines(code).removesuffix("  # property"))
    return text.replace(name, "", 1).strip()


def join_lines(code: str) -> str:
    """Return a signature on one line."""
    text = " ".join(line.strip() for line in code.splitlines())
    return text.replace("( ", "(").replace(", )", ")")


def format_row(row: Row) -> str:
    """Return a row of the table, with the first sentence of the docstring."""
    signatures = "<br>".join(f"`{one}`" for one in row.signatures if one)
    cells = (f"`{row.name}`", signatures, read_first_sentence(row.docstring))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def read_first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring, without line breaks."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring)[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(make_page(), encoding="utf-8")
