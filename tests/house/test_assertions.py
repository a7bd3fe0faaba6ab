"""A reader sees in each test what it checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import parse, python_files, relative

CHECKS = re.compile(r"raises|warns|fail|_?(assert|check|expect|require)(_\w+)?|assert[A-Z]\w+")
"""Names of functions that fail a test."""
FILES = [
    path
    for path in python_files("tests", "src/nimburion/testing")
    if "def test_" in path.read_text(encoding="utf-8")
]


def find_tests_without_assertion(path: Path) -> list[str]:
    """Return the tests that neither assert nor call a function whose name says that it does."""
    return [test.name for test in list_tests(parse(path)) if not any(map(is_check, ast.walk(test)))]


def list_tests(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the test functions of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_":
            yield node


def is_check(node: ast.AST) -> bool:
    """Whether this is an assertion, or a call of a function named after one."""
    match node:
        case ast.Assert():
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return CHECKS.fullmatch(name) is not None
    return False


def test_each_test_shows_what_it_checks() -> None:
    found = {
        relative(path): tests for path in FILES if (tests := find_tests_without_assertion(path))
    }
    assert found == {}


def test_a_test_without_assertion_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "def test_a():\n    work()\n"
        "def test_b():\n    assert work()\n"
        "async def test_c():\n    await check_work()\n"
        "def test_d():\n    with pytest.raises(ValueError):\n        work()\n"
    )
    assert find_tests_without_assertion(planted) == ["test_a"]
