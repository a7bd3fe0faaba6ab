"""Small functions, small files: a reader meets one idea at a time."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

from tests.house.tree import parse, python_files, relative

MEDIAN, NINE_IN_TEN, FUNCTION, FILE = 10, 25, 50, 400

# "path" or "path:function" -> why it may be longer. Each entry is a debt with a reason.
EXPLAINED: dict[str, str] = {}


def functions_of(tree: ast.AST) -> list[tuple[str, int]]:
    """Return name and length of each function, without its docstring; stubs are left out."""
    return [
        (node.name, length)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := lines_of(node))
    ]


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count from `def` to the last line; 0 for a body of nothing but a docstring or `...`."""
    body = function.body
    says = body[0] if ast.get_docstring(function, clean=False) is not None else None
    rest = body[1:] if says else body
    if all(isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in rest):
        return 0
    docstring = 0 if says is None else (says.end_lineno or says.lineno) - says.lineno + 1
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def every_function() -> list[tuple[str, int]]:
    """Return path:name and length of every function in the package."""
    return [
        (f"{relative(path)}:{name}", length)
        for path in python_files("src")
        for name, length in functions_of(parse(path))
    ]


def line_count(path: Path) -> int:
    """Count the lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def too_long() -> dict[str, int]:
    """Return the files and functions that are over the limit, with their lengths."""
    files = [(relative(path), line_count(path)) for path in python_files("src")]
    return {
        **{name: length for name, length in every_function() if length > FUNCTION},
        **{name: length for name, length in files if length > FILE},
    }


def test_functions_are_short_as_a_rule() -> None:
    lengths = [length for _, length in every_function()]
    assert len(lengths) > 50  # else there is nothing to judge yet
    assert statistics.median(lengths) <= MEDIAN
    assert statistics.quantiles(lengths, n=10)[-1] <= NINE_IN_TEN


def test_nothing_is_long_without_a_reason() -> None:
    assert {name: length for name, length in too_long().items() if name not in EXPLAINED} == {}


def test_no_exception_has_outlived_its_reason() -> None:
    assert EXPLAINED.keys() - too_long().keys() == set()


def test_lengths_are_counted_as_said() -> None:
    source = '''
def stub():
    """Only words."""
    ...

async def three():
    """One.

    Two.
    """
    await x
    return 1
'''
    assert functions_of(ast.parse(source)) == [("three", 3)]
