"""The app `nimburion.integrations.django`: it owns the processor of the project."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from django.apps import AppConfig
from django.conf import settings
from django.core.signals import setting_changed
from django.db.models.signals import post_migrate

from nimburion.integrations.django.autodiscovery import discover_jobs
from nimburion.integrations.django.django_processor import DjangoProcessor
from nimburion.integrations.django.middleware import PATH
from nimburion.integrations.django.project_settings import (
    SETTING,
    ProjectSettings,
    read_project_settings,
)

if TYPE_CHECKING:
    from nimburion.server.sync_dashboard import SyncDashboard


class NimburionConfig(AppConfig):
    """The configuration of the app. Its checks have ids that begin with `nimburion.`."""

    name = "nimburion.integrations.django"
    label = "nimburion"

    @cached_property
    def project_settings(self) -> ProjectSettings:
        """The setting `NIMBURION`, or why it cannot be used."""
        return read_project_settings()

    @cached_property
    def processor(self) -> DjangoProcessor:
        """The processor of the project. Opening it fails if the setting `NIMBURION` is wrong."""
        return DjangoProcessor(self.project_settings)

    @cached_property
    def dashboard(self) -> SyncDashboard:
        """The dashboard of the project, for `nimburion.integrations.django.dashboard`."""
        from nimburion.server.sync_dashboard import SyncDashboard

        return SyncDashboard(self.processor, self.project_settings.config)

    def ready(self) -> None:
        """Register the system checks and the middleware, then import the modules that hold jobs."""
        import_module("nimburion.integrations.django.checks")
        post_migrate.connect(self._create_tables, sender=self, dispatch_uid="nimburion")
        setting_changed.connect(self._follow_setting, dispatch_uid="nimburion")
        if PATH not in settings.MIDDLEWARE:
            # No handler of requests has read the setting yet.
            settings.MIDDLEWARE = [PATH, *settings.MIDDLEWARE]
        discover_jobs(self.processor, self.project_settings.modules)

    def _create_tables(self, using: str, **_: object) -> None:
        if self.project_settings.error is None:
            self.processor.create_tables(using)

    def _follow_setting(self, setting: str, **_: object) -> None:
        if setting == SETTING:
            self.processor.mark_stale()
