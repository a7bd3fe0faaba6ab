"""The schema of all settings, as data. The docs list it, and the readers follow it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import get_args, get_type_hints

import msgspec

from nimburion.config.tree import Path, Written, describe_type, make_refusal
from nimburion.config.value_types import (
    ValueType,
    choice,
    duration,
    flag,
    integer,
    json_object,
    listed,
    name,
    number,
    rate,
    size,
    text,
    url_path,
    zone,
)
from nimburion.core.access_rights import RIGHTS
from nimburion.core.fairness import MAX_WEIGHT, MIN_WEIGHT
from nimburion.core.settings import (
    Bounds,
    JobSettings,
    KeyedLimitSettings,
    QueueLimitSettings,
    QueueSettings,
    Settings,
    read_bounds,
)
from nimburion.core.text.suggestions import find_nearest


class Section(msgspec.Struct, frozen=True):
    """A map with these keys and no others."""

    keys: Mapping[str, Shape]
    required: frozenset[str] = frozenset()


class SectionList(msgspec.Struct, frozen=True):
    """A list of such maps. The value of the key `unique` differs in each."""

    each: Section
    unique: str


Shape = ValueType | Section | SectionList


def read_bounded_types(settings: type[msgspec.Struct]) -> dict[str, ValueType]:
    """Return the types of the settings whose bounds `core.settings` declares, in its order."""
    hints = get_type_hints(settings)
    return {
        name: _make_number_type(bounds, float in {hints[name], *get_args(hints[name])})
        for name, bounds in read_bounds(settings).items()
    }


def _make_number_type(bounds: Bounds, seconds: bool) -> ValueType:  # noqa: FBT001 (an adjective of the kind)
    if seconds or bounds.most is None:
        return duration(bounds.least, optional=bounds.optional)
    return integer(int(bounds.least), int(bounds.most), optional=bounds.optional)


BACKENDS: Mapping[str, Shape] = MappingProxyType(
    {
        "memory": Section({}),
        "sqlite": Section({"path": text(), "url": text(secret=True)}),
        "redis": Section(
            {
                "addr": text(),
                "url": text(secret=True),
                "username": text(),
                "password": text(secret=True),
                "db": integer(0, 1_000_000),
                "tls": flag(),
                "tls_ca": text(),
                "tls_cert": text(),
                "tls_key": text(),
                "tls_verify": choice("full", "ca", "none"),
                "namespace": name(64),
                "require_durable": flag(),
                "durable_enqueue": flag(),
                "timeout": duration(0.001, most=3600),
            }
        ),
        "postgres": Section(
            {
                "addr": text(),
                "url": text(secret=True),
                "username": text(),
                "password": text(secret=True),
                "database": text(),
                "schema": name(40),
                "sslmode": choice(
                    "disable", "allow", "prefer", "require", "verify-ca", "verify-full"
                ),
                "sslrootcert": text(),
                "sslcert": text(),
                "sslkey": text(),
                "connections": integer(1, 1000),
                "pooler": choice("auto", "yes", "no"),
                "timeout": duration(0.001, most=3600),
            }
        ),
    }
)

QUEUE = Section(
    {
        "name": name(),
        **read_bounded_types(QueueSettings),
        "keep_arguments": choice("auto", "yes", "no"),
        "fairness": choice("auto", "tenants", "none"),
    },
    required=frozenset({"name"}),
)

TENANT = Section(
    {"name": text(), "weight": number(MIN_WEIGHT, MAX_WEIGHT)}, required=frozenset({"name"})
)

_JOB_NUMBERS = read_bounded_types(JobSettings)
JOB = Section(
    {
        "name": name(),
        "concurrency": _JOB_NUMBERS["concurrency"],
        "rate": rate(optional=True),
        **{key: _JOB_NUMBERS[key] for key in ("burst", "batch", "batch_wait")},
    },
    required=frozenset({"name"}),
)

_KEYED_NUMBERS = read_bounded_types(KeyedLimitSettings)
KEYED_LIMIT = Section(
    {
        "name": name(256),
        "concurrency": _KEYED_NUMBERS["concurrency"],
        "rate": rate(optional=True),
        "burst": _KEYED_NUMBERS["burst"],
    },
    required=frozenset({"name"}),
)

_QUEUE_NUMBERS = read_bounded_types(QueueLimitSettings)
QUEUE_LIMIT = Section(
    {
        "name": name(),
        "concurrency": _QUEUE_NUMBERS["concurrency"],
        "rate": rate(optional=True),
        "burst": _QUEUE_NUMBERS["burst"],
    },
    required=frozenset({"name"}),
)

LIMITS = Section(
    {
        "payload": size(1, 256 * 1024**2),
        "nesting": integer(1, 500),
        "batch": integer(1, 1_000_000),
        "error": size(256, 16 * 1024**2),
        "result": size(0, 256 * 1024**2),
        "headers": size(0, 16 * 1024**2),
        "exchange": size(1024, 256 * 1024**2),
        "unsettled": size(1024, 16 * 1024**3),
    }
)

BACKEND_KEYS: Mapping[str, Shape] = MappingProxyType(
    {"backend": choice(*BACKENDS), "url": text(secret=True), **BACKENDS}
)
"""The keys that together select the backend. `Settings.url` is built from them."""

_NUMBERS = read_bounded_types(Settings)

JOBS = Section(
    {
        **BACKEND_KEYS,
        "owner": name(),
        "concurrency": _NUMBERS["concurrency"],
        "queues": SectionList(QUEUE, unique="name"),
        "fairness": choice("tenants", "none"),
        "tenants": SectionList(TENANT, unique="name"),
        "policies": SectionList(JOB, unique="name"),
        "keyed_limits": SectionList(KEYED_LIMIT, unique="name"),
        "queue_limits": SectionList(QUEUE_LIMIT, unique="name"),
        **_NUMBERS,
        "child_max_memory": size(32 * 1024**2, 1024**4, optional=True),
        "worker_max_memory": size(32 * 1024**2, 1024**4, optional=True),
        "keep_arguments": choice("auto", "yes", "no"),
        "code_version": text(),
        "log_attempts": choice("debug", "info"),
        "limits": LIMITS,
    }
)

TASK = Section(
    {
        "name": name(100),
        "cron": text(),
        "queue": name(),
        "job_name": name(),
        "payload": json_object(),
        "timezone": zone(),
        "misfire_policy": choice("fire_once", "skip", "catch_up"),
        "overlap": choice("allow", "skip", "queue_one", "cancel_previous"),
        "priority": integer(0, 9),
        "enabled": flag(),
    },
    required=frozenset({"name", "cron", "job_name"}),
)

SCHEDULER = Section(
    {"enabled": flag(), "timezone": zone(), "tasks": SectionList(TASK, unique="name")}
)

TOKEN = Section(
    {
        "name": name(),
        "rights": listed(choice(*RIGHTS)),
        "file": text(),
        "variable": text(),
    },
    required=frozenset({"name", "rights"}),
)

SERVER = Section(
    {
        "enabled": flag(),
        "host": text(),
        "port": integer(0, 65_535),
        "tokens": SectionList(TOKEN, unique="name"),
        "allowed_hosts": listed(text()),
        "max_body": size(1024, 512 * 1024**2),
        "root_path": url_path(),
    }
)

TELEMETRY = Section({"log_format": choice("text", "json")})

ROOT = Section({"jobs": JOBS, "scheduler": SCHEDULER, "server": SERVER, "telemetry": TELEMETRY})

COMING = frozenset({"management"})
"""Sections of later versions. They are rejected until then, because no section is ignored
silently.
"""

REMOVED: Mapping[Path, str] = MappingProxyType(
    {("jobs", "postgres", "prefix"): "table names have no prefix; choose another postgres.schema"}
)
"""The settings of earlier versions, each with what to set instead."""


def find_shape(path: tuple[str, ...]) -> Shape | None:
    """Return the schema at this path, or None if no setting has this path."""
    shape: Shape = ROOT
    for key in path:
        if not isinstance(shape, Section) or key not in shape.keys:
            return None
        shape = shape.keys[key]
    return shape


def read_value(shape: Shape, written: Written, path: Path) -> object:
    """Return the value of a tree, in the types of `Settings`."""
    if isinstance(shape, ValueType):
        return shape.read(written, path)
    if isinstance(shape, Section):
        return read_section(shape, written, path)
    return read_series(shape, written, path)


def read_section(section: Section, written: Written, path: Path) -> dict[str, object]:
    """Return the values of the keys that are set; an empty section has none."""
    if written.value is None:
        return {}
    if not isinstance(written.value, dict):
        keys = ", ".join(section.keys)
        found = describe_type(written.value)
        raise make_refusal(written.place, path, f"expected a map of {keys}; found {found}")
    for key, value in written.value.items():
        if key not in section.keys:
            raise make_refusal(
                value.place, (*path, key), describe_unknown_key(key, section.keys, path)
            )
    for key in sorted(section.required - written.value.keys()):
        raise make_refusal(written.place, path, f"{key} is missing")
    return {
        key: read_value(section.keys[key], value, (*path, key))
        for key, value in written.value.items()
    }


def read_series(series: SectionList, written: Written, path: Path) -> list[dict[str, object]]:
    """Return the items in their order."""
    if written.value is None:
        return []
    if not isinstance(written.value, list):
        keys = ", ".join(series.each.keys)
        found = describe_type(written.value)
        raise make_refusal(written.place, path, f"expected a list of maps of {keys}; found {found}")
    items: list[dict[str, object]] = []
    seen: set[object] = set()
    for index, item in enumerate(written.value):
        values = read_section(series.each, item, (*path, index))
        mark = values.get(series.unique)
        if mark in seen:
            where = (*path, index, series.unique)
            raise make_refusal(item.place, where, f"{mark!r} occurs twice in this list")
        seen.add(mark)
        items.append(values)
    return items


def describe_unknown_key(key: str, known: Iterable[str], path: Path = ()) -> str:
    """Return a message that there is no such key, with the most likely one."""
    if not path and key in COMING:
        readable = ", ".join(ROOT.keys)
        return f"not in this version yet; remove the section (this version reads: {readable})"
    if (*path, key) in REMOVED:
        return REMOVED[*path, key]
    names = list(known)
    near = find_nearest(key, names)
    if near:
        return f"no such setting; did you mean {near}?"
    if not path and key in JOBS.keys:
        return f"no such section; did you mean jobs.{key}?"
    return f"no such setting; known here: {', '.join(names) or 'nothing'}"
