"""docs/reference/settings.md says of each setting what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from nimburion.config.scalars import parse_scalar
from nimburion.config.schema import (
    BACKEND_KEYS,
    COMING,
    JOBS,
    SCHEDULER,
    SERVER,
    TELEMETRY,
    Section,
    SectionList,
    Shape,
)
from nimburion.config.tree import Place, Written
from nimburion.config.value_types import ValueType
from nimburion.core.settings import (
    JobSettings,
    KeyedLimitSettings,
    QueueLimitSettings,
    QueueSettings,
    SchedulerSettings,
    ServerSettings,
    Settings,
    TaskSettings,
    TelemetrySettings,
    TenantSettings,
    TokenSettings,
)
from tests.house.tree import ROOT

PAGE = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z_.\[\]]+)` \| (-|`[^`]*`) \| (.*?) \| (.+) \|$", re.MULTILINE)
ROWS = {name: (default.strip("`"), allowed) for name, default, allowed, _ in ROW.findall(PAGE)}


def kinds(shape: Shape, path: str) -> Iterator[tuple[str, ValueType]]:
    """Every setting and its kind."""
    if isinstance(shape, ValueType):
        yield path, shape
    elif isinstance(shape, SectionList):
        yield from kinds(shape.each, f"{path}[]")
    else:
        for key, inner in shape.keys.items():
            yield from kinds(inner, f"{path}.{key}".lstrip("."))


KINDS = {
    **dict(kinds(JOBS, "")),
    **dict(kinds(SCHEDULER, "scheduler")),
    **dict(kinds(SERVER, "server")),
    **dict(kinds(TELEMETRY, "telemetry")),
}
REQUIRED = {
    *("queues[].name", "overrides[].name", "keyed_limits[].name", "tenants[].name"),
    "queue_limits[].name",
    *(f"scheduler.tasks[].{name}" for name in ("name", "cron", "job_name")),
    *(f"server.tokens[].{name}" for name in ("name", "rights")),
}
WITHOUT_DEFAULT = {
    *("scheduler.tasks[].timezone", "server.tokens[].file", "server.tokens[].variable"),
    *("server.allowed_hosts", "server.root_path"),
    *("code_version", "outbox_url"),
}
"""Settings whose default cannot be written: none, an empty text or an empty list."""


def default_of(name: str) -> object:
    """The default in `core.settings`."""
    value: object = Settings()
    for prefix, other in (
        ("scheduler.tasks[].", TaskSettings(name="x", cron="@daily", job_name="x")),
        ("telemetry.", TelemetrySettings()),
        ("server.", ServerSettings()),
        ("scheduler.", SchedulerSettings()),
        ("overrides[].", JobSettings(name="x")),
        ("keyed_limits[].", KeyedLimitSettings(name="x")),
        ("queue_limits[].", QueueLimitSettings(name="x")),
        ("tenants[].", TenantSettings(name="x")),
        ("queues[].", QueueSettings("x")),
    ):
        if name.startswith(prefix):
            value, name = other, name.removeprefix(prefix)
            break
    for step in name.split("."):
        value = getattr(value, step)
    return value


def test_the_table_lists_every_setting_in_order() -> None:
    assert list(ROWS) == list(KINDS)


def test_what_is_allowed_is_what_the_readers_allow() -> None:
    assert {name: allowed for name, (_, allowed) in ROWS.items()} == {
        name: kind.allowed for name, kind in KINDS.items()
    }


def test_the_defaults_are_those_of_the_code() -> None:
    named_by_backend = {name for name in ROWS if name.split(".")[0] in BACKEND_KEYS}
    for name in ROWS.keys() - named_by_backend - REQUIRED - WITHOUT_DEFAULT:
        written = ROWS[name][0]
        value = KINDS[name].read(Written(parse_scalar(written), Place("page"), written), (name,))
        assert value == default_of(name), name


def test_every_setting_of_the_code_can_be_written() -> None:
    fields = {field.name for field in msgspec.structs.fields(Settings)}
    assert JOBS.keys.keys() - BACKEND_KEYS.keys() | {"url"} == fields
    queue = JOBS.keys["queues"]
    sizes = JOBS.keys["sizes"]
    for key, settings in (
        ("overrides", JobSettings),
        ("keyed_limits", KeyedLimitSettings),
        ("queue_limits", QueueLimitSettings),
    ):
        series = JOBS.keys[key]
        assert isinstance(series, SectionList)
        assert set(series.each.keys) == set(settings.__struct_fields__)
    assert isinstance(queue, SectionList)
    assert isinstance(sizes, Section)
    assert set(queue.each.keys) == set(QueueSettings.__struct_fields__)
    assert set(sizes.keys) == set(Settings().sizes.__struct_fields__)
    tokens = SERVER.keys["tokens"]
    assert isinstance(tokens, SectionList)
    assert set(SERVER.keys) == set(ServerSettings.__struct_fields__)
    assert set(tokens.each.keys) == set(TokenSettings.__struct_fields__)


def test_sections_to_come_are_named() -> None:
    documented = re.search(r"later versions will read \(([^)]*)\)", PAGE)
    assert documented
    assert set(re.findall(r"`(\w+)`", documented[1])) == COMING
