"""The page of this server: versions, settings in force, and files of other projects."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType

import msgspec

from nimburion.config.local_checks import find_version
from nimburion.core.settings import Config
from nimburion.core.text.redaction import redact_url
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.assets import VendoredFile, load_vendored
from nimburion.server.dashboard.page import DashboardPage, PageRequest

PACKAGES = ("nimburion", "starlette", "uvicorn", "jinja2", "msgspec", "redis", "asyncpg")


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One setting."""

    name: str
    """Its place in the configuration: `jobs.concurrency`."""
    value: str
    changed: bool
    """Whether it differs from the default."""


class AboutData(msgspec.Struct, frozen=True, kw_only=True):
    """This server."""

    versions: dict[str, str]
    source: str | None
    """Where the configuration was read from; None: only defaults, environment and arguments."""
    settings: list[SettingRow]
    vendored: tuple[VendoredFile, ...]


async def read_about(request: PageRequest[NoQuery]) -> AboutData:
    """Return what this process runs with. The backend is not read."""
    return AboutData(
        versions=dict(_find_versions()),
        source=request.services.config.source,
        settings=list_settings(request.services.config),
        vendored=load_vendored(),
    )


@cache
def _find_versions() -> Mapping[str, str]:
    """Return the versions of the packages that are installed; they are read from files."""
    versions = {"python": sys.version.split()[0]}
    versions.update((package, find_version(package)) for package in PACKAGES)
    known = {name: text for name, text in versions.items() if not text.startswith("(")}
    return MappingProxyType(known)


def list_settings(config: Config) -> list[SettingRow]:
    """Return all settings without secrets: passwords in URLs and the payloads of schedules are left
    out. Tokens are never part of the configuration.
    """
    given, defaults = dict(_flatten_config(config)), dict(_flatten_config(Config()))
    return [
        SettingRow(name=name, value=value, changed=value != defaults.get(name))
        for name, value in given.items()
    ]


def _flatten_config(config: Config) -> Iterator[tuple[str, str]]:
    data = msgspec.to_builtins(config)
    data.pop("source")
    data["jobs"]["url"] = redact_url(config.jobs.url)
    for task in data["scheduler"]["tasks"]:
        for key in ("payload", "place"):
            task.pop(key, None)
    yield from _flatten(data, "")


def _flatten(data: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            for index, one in enumerate(value):
                yield from _flatten(one, f"{prefix}{key}.{index}.")
        else:
            yield f"{prefix}{key}", _format_value(value)


def _format_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


ABOUT = DashboardPage(
    path="/about",
    title="About",
    section="About",
    read=read_about,
    template="about.html",
    tables=("settings",),
    interval=None,
)
