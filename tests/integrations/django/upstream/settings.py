"""The settings under which Django's own tests of tasks run."""

from __future__ import annotations

SECRET_KEY = "only for tests"
USE_TZ = False
INSTALLED_APPS = ["nimburion.integrations.django", "tasks"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3"},
    "other": {"ENGINE": "django.db.backends.sqlite3"},
}
NIMBURION = {"url": "memory://", "autodiscover": []}
TEST_RUNNER = "tests.integrations.django.upstream.runner.UpstreamRunner"
