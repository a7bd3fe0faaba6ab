"""The schema of the configuration, as data. The docs list it, and the readers follow it.

It is made from the annotations in `core.settings`. Only the keys that select a backend stand here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

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
from nimburion.core.settings import (
    BatchSettings,
    JobSettings,
    Kind,
    QueueSettings,
    SchedulerSettings,
    ServerSettings,
    Settings,
    TaskSettings,
    TelemetrySettings,
)
from nimburion.core.size_limits import SizeLimits
from nimburion.core.text.suggestions import find_nearest


class Section(msgspec.Struct, frozen=True):
    """A map with these keys and no others."""

    keys: Mapping[str, Shape]
    required: frozenset[str] = frozenset()
    settings: type[msgspec.Struct] | None = None
    """The class of the settings that the map becomes; None: it stays a map."""
    shorthand: str = ""
    """The key that a value in place of the map stands for; empty: there is none."""


class SectionList(msgspec.Struct, frozen=True):
    """A list of such maps. The value of the key `unique` differs in each."""

    each: Section
    unique: str


Shape = ValueType | Section | SectionList


def make_section(settings: type[msgspec.Struct], **keys: Shape | None) -> Section:
    """Return the section of a class of settings, as its annotations say.

    `keys` replaces the shape of single settings; None leaves a setting out.
    """
    hints = get_type_hints(settings, include_extras=True)
    shapes = {
        field.name: keys[field.name]
        if field.name in keys
        else _make_shape(f"{settings.__name__}.{field.name}", hints[field.name])
        for field in msgspec.structs.fields(settings)
    }
    required = {field.name for field in msgspec.structs.fields(settings) if field.required}
    return Section(
        {name: shape for name, shape in shapes.items() if shape is not None},
        frozenset(required),
        settings,
    )


def make_list(each: Shape) -> SectionList:
    """Return the shape of a list of sections, each of which has another name."""
    if not isinstance(each, Section):
        raise TypeError(f"a list of {each} cannot be a setting")
    return SectionList(each, unique="name")


def _make_shape(setting: str, hint: Any) -> Shape:  # noqa: ANN401 (an annotation)
    """Return the shape of a setting with this annotation."""
    parts = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    optional = type(None) in parts
    (kind,) = (part for part in parts if part is not type(None))
    if get_origin(kind) is tuple:
        each = _make_shape(setting, get_args(kind)[0])
        return listed(each) if isinstance(each, ValueType) else make_list(each)
    if get_origin(kind) is Literal:
        return choice(*get_args(kind))
    details = getattr(kind, "__metadata__", ())
    meta = next((detail for detail in details if isinstance(detail, Meta)), Meta())
    base = get_args(kind)[0] if details else kind
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        return make_section(base)
    if base is int and meta.le is None:
        raise TypeError(f"{setting} is a whole number without an upper bound: write Meta(le=…)")
    return _make_value_type(base, set(details), meta, optional)


def _make_value_type(base: object, details: set[object], meta: Meta, optional: bool) -> ValueType:  # noqa: FBT001 (an adjective of the type)
    if base is bool:
        return flag()
    if base is str:
        return _make_text_type(details, meta, optional)
    least = meta.ge or 0
    if Kind.BYTES in details:
        return size(int(least), int(meta.le or 0), optional=optional)
    if base is int:
        return integer(int(least), int(meta.le or 0), optional=optional)
    if meta.le is not None:
        return number(least, meta.le)
    return duration(least, optional=optional)


def _make_text_type(details: set[object], meta: Meta, optional: bool) -> ValueType:  # noqa: FBT001 (an adjective of the type)
    if Kind.NAME in details:
        return name(meta.max_length or 128)
    if Kind.RATE in details:
        return rate(optional=optional)
    if Kind.TIME_ZONE in details:
        return zone()
    if Kind.JSON_OBJECT in details:
        return json_object()
    return url_path() if Kind.URL_PATH in details else text()


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

BACKEND_KEYS: Mapping[str, Shape] = MappingProxyType(
    {"backend": choice(*BACKENDS), "url": text(secret=True), **BACKENDS}
)
"""The keys that together select the backend. `Settings.url` is built from them."""

SIZES = Section(
    {
        "payload": size(1, 256 * 1024**2),
        "nesting": integer(1, 500),
        "batch": integer(1, 1_000_000),
        "error": size(256, 16 * 1024**2),
        "result": size(0, 256 * 1024**2),
        "headers": size(0, 16 * 1024**2),
        "exchange": size(1024, 256 * 1024**2),
        "unsettled": size(1024, 16 * 1024**3),
    },
    settings=SizeLimits,
)

BATCH = msgspec.structs.replace(make_section(BatchSettings), shorthand="size")
QUEUES = make_list(msgspec.structs.replace(make_section(QueueSettings), shorthand="name"))
OVERRIDES = make_list(make_section(JobSettings, batch=BATCH))

JOBS = Section(
    {
        **BACKEND_KEYS,
        **make_section(Settings, url=None, sizes=SIZES, queues=QUEUES, overrides=OVERRIDES).keys,
    }
)

TASK = make_section(TaskSettings, place=None)

SCHEDULER = make_section(SchedulerSettings, tasks=make_list(TASK))
SERVER = make_section(ServerSettings)
TELEMETRY = make_section(TelemetrySettings)
ROOT = Section({"jobs": JOBS, "scheduler": SCHEDULER, "server": SERVER, "telemetry": TELEMETRY})

COMING = frozenset({"management"})
"""Sections of later versions. They are rejected until then, because no section is ignored
silently.
"""

REMOVED: Mapping[Path, str] = MappingProxyType(
    {
        (
            "jobs",
            "postgres",
            "prefix",
        ): "table names have no prefix; choose another postgres.schema",
        ("jobs", "limits"): "the sizes of the data of jobs are set by jobs.sizes",
        ("jobs", "policies"): "it is now jobs.overrides",
        **{
            ("jobs", f"{kind}_max_{what}"): f"it is now jobs.{kind}_recycle.{what}"
            for kind in ("child", "worker")
            for what in ("jobs", "memory", "age")
        },
    }
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
    if section.shorthand and not isinstance(written.value, dict | list):
        written = Written({section.shorthand: written}, written.place)
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


def make_settings(shape: Shape, value: Any) -> Any:  # noqa: ANN401 (what the shape says)
    """Return a value that was read as the settings of its section, with defaults for the others."""
    if isinstance(shape, SectionList):
        return tuple(make_settings(shape.each, item) for item in value)
    if isinstance(shape, Section) and shape.settings is not None:
        return shape.settings(
            **{key: make_settings(shape.keys[key], item) for key, item in value.items()}
        )
    return value


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
