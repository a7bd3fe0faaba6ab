"""A Django project whose database and backend come from the environment of the test."""

from __future__ import annotations

import json
import os
from typing import Any

import django

SECRET_KEY = "only for tests"
USE_TZ = True
ROOT_URLCONF = "tests.integrations.django.project.urls"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "nimburion.integrations.django",
    "tests.integrations.django.project.shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if django.VERSION >= (6,):
    INSTALLED_APPS.append("tests.integrations.django.project.tasked")
_BACKEND = "nimburion.integrations.django.task_backend.NimburionBackend"
TASKS = {
    "default": {"BACKEND": _BACKEND, "QUEUES": ["default", "reports", "other"]},
    "second": {"BACKEND": _BACKEND},
    "retrying": {"BACKEND": _BACKEND, "OPTIONS": {"max_retries": 2, "retry_backoff": 0}},
}
# Without their migrations, the tables are made in a fraction of the time.
MIGRATION_MODULES = dict.fromkeys(["admin", "auth", "contenttypes", "sessions"])
DATABASES = {"default": json.loads(os.environ["NB_DJANGO_DATABASE"])}
NIMBURION: dict[str, Any] = json.loads(os.environ.get("NB_DJANGO_JOBS", "{}"))
