"""Run Django's own tests of tasks against our backend, in the process of Django 6.0 or newer.

    python -m tests.integrations.django.upstream.run [FOLDER]

The tests are in the source package of Django, which pip fetches; FOLDER is an unpacked one to use
instead. Their two backends are replaced by ours (`backends.py`); what a backend with workers cannot
meet is listed in `runner.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django

ROOT = Path(__file__).parents[4]
PACKAGE = "tests.integrations.django.upstream"
REPLACED = {
    "django.tasks.backends.dummy": f"{PACKAGE}.backends",
    "django.tasks.backends.immediate": f"{PACKAGE}.backends",
}


def main(arguments: list[str]) -> int:
    """Fetch, adapt and run the tests; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = Path(arguments[0]) if arguments else fetch_source(folder)
        adapt_tests(source / "tests" / "tasks", folder / "adapted" / "tasks")
        path = os.pathsep.join([str(folder / "adapted"), str(ROOT)])
        command = [sys.executable, "-m", "django", "test", "tasks"]
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "DJANGO_SETTINGS_MODULE": f"{PACKAGE}.settings",
        }
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def fetch_source(folder: Path) -> Path:
    """Download the source package of the installed Django, and return its folder."""
    wanted = f"django=={django.get_version()}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "django"]
    subprocess.run([*pip, "--dest", str(folder), wanted], check=True)
    (archive,) = folder.glob("[dD]jango-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def adapt_tests(source: Path, target: Path) -> None:
    """Copy the tests, with our backends in the places of Django's."""
    shutil.copytree(source, target)
    for path in target.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for module, replacement in REPLACED.items():
            text = text.replace(module, replacement)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
