"""Read the setting `NIMBURION` of a Django project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS

from nimburion import config
from nimburion.core.errors import ConfigurationError
from nimburion.core.settings import Config
from nimburion.integrations.django.databases import make_database_url

T = TypeVar("T")

SETTING = "NIMBURION"
DEFAULT_MODULES = ("jobs", "tasks")
"""The modules of each app that are imported at the start."""

_SECTIONS = frozenset({"scheduler", "server", "telemetry"})
_NOWHERE = "sqlite:////dev/null/no-backend"
"""Stands for the missing backend while the layers are merged."""
_OWN_KEYS = frozenset({"database", "autodiscover", "outbox"})


class ProjectSettings(NamedTuple):
    """The setting `NIMBURION`, read once."""

    config: Config
    """The configuration; its defaults if there is an error."""
    database: str = "default"
    """The alias of Django's database whose transactions an enqueue waits for."""
    modules: tuple[str, ...] = DEFAULT_MODULES
    outbox: bool = False
    """Whether jobs that live elsewhere wait for the commit in an outbox of that database."""
    errors: tuple[ConfigurationError, ...] = ()
    """Why the setting cannot be used. The system check `nimburion.E001` reports each."""

    @property
    def error(self) -> ConfigurationError | None:
        """The first error; None if the setting can be used."""
        return self.errors[0] if self.errors else None


def read_project_settings(**arguments: object) -> ProjectSettings:
    """Return the setting `NIMBURION`; environment variables override it, then `arguments` do.

    Never raises for a wrong setting: Django must start to report it.
    """
    errors: list[ConfigurationError] = []
    written = _collect(errors, _check_map, getattr(settings, SETTING, {})) or {}
    database = _collect(errors, _read_alias, written)
    modules = _collect(errors, _read_modules, written)
    outbox = _collect(errors, _read_outbox, written)
    loaded = None
    if not errors or written:
        try:
            loaded = _load(written, database or DEFAULT_DB_ALIAS, arguments)
        except ConfigurationError as error:
            errors += _find_errors(written) or [error]
    if errors or loaded is None or database is None or modules is None or outbox is None:
        return ProjectSettings(Config(), errors=tuple(errors))
    if loaded.jobs.outbox_url:
        problem = ConfigurationError(
            f'{SETTING}: outbox_url: in Django, write "outbox": True; the outbox is then a table '
            f'of the database that {SETTING}["database"] names'
        )
        return ProjectSettings(Config(), errors=(problem,))
    if outbox:
        loaded = _name_outbox(loaded, database)
    return ProjectSettings(loaded, database, modules, outbox)


def _collect(
    errors: list[ConfigurationError], read: Callable[[Any], T], written: object
) -> T | None:
    """Return what `read` returns; add the error that it raises, and return None."""
    try:
        return read(written)
    except ConfigurationError as error:
        errors.append(error)
        return None


def _find_errors(written: Mapping[str, object]) -> list[ConfigurationError]:
    """Return the error of each setting that is wrong by itself."""
    parts: list[dict[str, object]] = []
    for key, value in written.items():
        if key in _OWN_KEYS:
            continue
        if key not in _SECTIONS:
            parts.append({"jobs": {key: value}})
        elif isinstance(value, Mapping):
            parts.extend({key: {name: inner}} for name, inner in value.items())
        else:
            parts.append({key: value})
    errors: dict[str, ConfigurationError] = {}  # a wrong environment variable fails each part
    for part in parts:
        try:
            config.load_sections(part, source=SETTING)
        except ConfigurationError as error:
            errors[str(error)] = _drop_level(error)
    return list(errors.values())


def _drop_level(error: ConfigurationError) -> ConfigurationError:
    """Return the error without the level `jobs`, which the setting does not have."""
    return ConfigurationError(str(error).replace(f"{SETTING}: jobs.", f"{SETTING}: ", 1))


def load_config(**arguments: object) -> Config:
    """Return the configuration of the project. Raises `ConfigurationError` if it is wrong."""
    found = read_project_settings(**arguments)
    if found.errors:
        raise ConfigurationError("; ".join(map(str, found.errors)))
    return found.config


def _load(written: Mapping[str, object], database: str, arguments: Mapping[str, object]) -> Config:
    """Return the configuration: the jobs live in Django's database unless a backend is named."""
    url = make_database_url(database)
    lowest = {"jobs": {"url": _NOWHERE if url is None else url}}
    sections: dict[str, object] = {key: written[key] for key in _SECTIONS if key in written}
    jobs = {
        key: value
        for key, value in written.items()
        if key not in _SECTIONS and key not in _OWN_KEYS
    }
    loaded = config.load_sections(lowest, {**sections, "jobs": jobs}, source=SETTING, **arguments)
    if loaded.jobs.url == _NOWHERE:
        raise ConfigurationError(
            f"jobs cannot be stored in the database {database!r}, which is neither PostgreSQL nor "
            f'a SQLite file: name a backend, {SETTING} = {{"url": "redis://localhost:6379/0"}}'
        )
    return loaded


def _name_outbox(loaded: Config, database: str) -> Config:
    """Return the configuration with the URL of the outbox, for commands such as `doctor`."""
    url = make_database_url(database)
    if url is None or url.startswith("memory:") or loaded.jobs.url.startswith("memory:"):
        return loaded
    return msgspec.structs.replace(
        loaded, jobs=msgspec.structs.replace(loaded.jobs, outbox_url=url)
    )


def _check_map(given: object) -> Mapping[str, object]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{SETTING}: expected a dict, not {given!r}")
    if isinstance(given.get("jobs"), Mapping):
        raise ConfigurationError(
            f'{SETTING}["jobs"]: write the settings of jobs without this level, like '
            f'{SETTING} = {{"concurrency": 20}}'
        )
    return given


def _read_alias(written: Mapping[str, object]) -> str:
    alias = written.get("database", "default")
    if not isinstance(alias, str) or alias not in settings.DATABASES:
        known = ", ".join(settings.DATABASES) or "none"
        raise ConfigurationError(
            f'{SETTING}["database"]: {alias!r} is no alias of DATABASES (known: {known})'
        )
    return alias


def _read_modules(written: Mapping[str, object]) -> tuple[str, ...]:
    names = written.get("autodiscover", DEFAULT_MODULES)
    if isinstance(names, list | tuple) and all(
        isinstance(name, str) and name.isidentifier() for name in names
    ):
        return tuple(names)
    raise ConfigurationError(
        f'{SETTING}["autodiscover"]: expected a list of names of modules, like ["jobs", "tasks"], '
        f"not {names!r}"
    )


def _read_outbox(written: Mapping[str, object]) -> bool:
    wanted = written.get("outbox", False)
    if isinstance(wanted, bool):
        return wanted
    raise ConfigurationError(f'{SETTING}["outbox"]: expected True or False, not {wanted!r}')
