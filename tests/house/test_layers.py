"""Imports only go down, and the linter that says so can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.house.tree import PACKAGE, ROOT

# Each third-party module, and the only packages that may name it.
PACKAGES_OF = {
    "asyncpg": ["backends.postgres", "jobs.outbox"],
    "click": ["cli"],
    "asgiref": ["integrations.django"],
    "cronsim": ["scheduler"],
    "django": ["integrations.django"],
    "hypothesis": ["testing"],
    "fastapi": ["integrations.fastapi"],
    "flask": ["cli.flask", "integrations.flask"],
    "jinja2": ["server"],
    "opentelemetry": ["telemetry"],
    "prometheus_client": ["telemetry"],
    "pytest": ["testing"],
    "redis": ["backends.redis"],
    "rich": ["cli"],
    "sqlalchemy": ["backends.caller_connections", "jobs.outbox"],
    "sqlite3": ["backends.sqlite", "jobs.outbox"],
    "starlette": ["server", "integrations.fastapi"],
    "uvicorn": ["server"],
    "yaml": ["config"],
}

PLANTED = {
    "upwards": ("core/planted.py", "import nimburion.backends", "Imports only go down"),
    "sideways": ("jobs/planted.py", "import nimburion.config", "Imports only go down"),
    "a new package": ("attic/__init__.py", "", "Imports only go down"),
    "between backends": (
        "backends/sqlite/planted.py",
        "import nimburion.backends.memory",
        "No backend knows another",
    ),
    "from options to declarations": (
        "jobs/options/planted.py",
        "import nimburion.jobs.declaration",
        "Declarations know what handlers receive",
    ),
    "a library in core": ("core/planted.py", "import click", "core imports the standard library"),
}


def lint_imports(source: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with our contracts over the package below `source`."""
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(
        [sys.executable, "-c", code, *config],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_layers_hold() -> None:
    result = lint_imports(PACKAGE.parent)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("breach", PLANTED)
def test_an_import_against_the_layers_is_found(breach: str, tmp_path: Path) -> None:
    name, line, contract = PLANTED[breach]
    copy = shutil.copytree(PACKAGE, tmp_path / "nimburion")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text(line + "\n")

    result = lint_imports(tmp_path)

    assert result.returncode != 0
    broken = [line for line in result.stdout.splitlines() if " BROKEN" in line]
    assert len(broken) == 1, result.stdout + result.stderr
    assert broken[0].startswith(contract)


def test_each_library_is_imported_in_its_own_package_only() -> None:
    graph = grimp.build_graph("nimburion", include_external_packages=True, cache_dir=None)
    strangers = [
        f"{importer} imports {library}"
        for library, packages in PACKAGES_OF.items()
        if library in graph.modules
        for importer in graph.find_modules_that_directly_import(library)
        if not any(is_in(importer, package) for package in packages)
    ]
    assert strangers == []


def test_core_imports_nothing_but_the_standard_library_and_msgspec() -> None:
    graph = grimp.build_graph("nimburion", include_external_packages=True, cache_dir=None)
    imported = {
        module.partition(".")[0]
        for importer in graph.modules
        if is_in(importer, "core")
        for module in graph.find_modules_directly_imported_by(importer)
    }
    assert imported - sys.stdlib_module_names <= {"nimburion", "msgspec"}
    assert "msgspec" in imported  # else the graph is empty and this test blind


def is_in(module: str, package: str) -> bool:
    """Tell whether a module is this package of the package or lies in it."""
    return f"{module}.".startswith(f"nimburion.{package}.")
