"""The settings of the project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = os.environ.get("SECRET_KEY", "an example")
DEBUG = True
ROOT_URLCONF = "mysite.urls"
USE_TZ = True
INSTALLED_APPS = ["nimburion.integrations.django", "orders"]


def choose_database() -> dict[str, Any]:
    """Return PostgreSQL if the environment names a database, otherwise a SQLite file."""
    if "DATABASE_NAME" in os.environ:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["DATABASE_NAME"],
            "HOST": os.environ.get("DATABASE_HOST", ""),
            "PORT": os.environ.get("DATABASE_PORT", ""),
            "USER": os.environ.get("DATABASE_USER", ""),
            "PASSWORD": os.environ.get("DATABASE_PASSWORD", ""),
        }
    file = Path(os.environ.get("DATABASE_FILE", BASE_DIR / "db.sqlite3"))
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": file,
        # Jobs and orders share the file: each transaction begins with the lock for writing.
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        # The tests need a file too, so that jobs and orders share it.
        "TEST": {"NAME": file.with_name("test.sqlite3")},
    }


DATABASES = {"default": choose_database()}
NIMBURION = {"concurrency": 10}
