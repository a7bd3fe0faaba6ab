"""What settings show of themselves."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest

from nimburion import config
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import ConfigurationError
from nimburion.core.settings import (
    Bounds,
    Config,
    QueueSettings,
    Settings,
    SettingsOptions,
    read_bounds,
)
from nimburion.jobs import Processor

BOUNDED = [
    *((Settings, name, bounds) for name, bounds in read_bounds(Settings).items()),
    *((QueueSettings, name, bounds) for name, bounds in read_bounds(QueueSettings).items()),
]


def test_no_password_is_shown() -> None:
    settings = Settings(url="postgresql://app:s3cret@db.example.com/jobs")
    for shown in (repr(settings), str(settings), repr(Config(jobs=settings))):
        assert "s3cret" not in shown
        assert "postgresql://app:***@db.example.com/jobs" in shown


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    assert "url='sqlite:///jobs.db'" in repr(Settings(url="sqlite:///jobs.db"))


def test_the_keywords_of_a_processor_are_the_settings() -> None:
    assert get_type_hints(SettingsOptions) == get_type_hints(Settings)


def given(kind: type[msgspec.Struct], name: str, value: object) -> tuple[dict[str, Any], Any]:
    """A setting as keywords of a processor, and as the section `jobs` of a configuration."""
    if kind is Settings:
        return {name: value}, {name: value}
    queue: dict[str, Any] = {"name": "mail", name: value}
    return {"queues": (QueueSettings(**queue),)}, {"queues": [queue]}


@pytest.mark.parametrize(("kind", "name", "bounds"), BOUNDED)
def test_processor_and_configuration_have_the_same_ranges(
    kind: type[msgspec.Struct], name: str, bounds: Bounds
) -> None:
    inside = [bounds.least, *([] if bounds.most is None else [bounds.most])]
    outside = [bounds.least - 0.01 if bounds.most is None else bounds.least - 1]
    outside += [] if bounds.most is None else [bounds.most + 1]
    for value in inside:
        keywords, section = given(kind, name, value)
        Processor(MemoryBackend(), **keywords)
        config.load(jobs=section)
    for value in outside:
        keywords, section = given(kind, name, value)
        with pytest.raises(ConfigurationError, match=f"{name}.*must be .*, not {value}"):
            Processor(MemoryBackend(), **keywords)
        with pytest.raises(ConfigurationError, match=name):
            config.load(jobs=section)


@pytest.mark.parametrize("name", ["grace", "session_ttl", "timeout"])
def test_what_is_no_number_is_out_of_bounds(name: str) -> None:
    wrong: dict[str, Any] = {name: float("nan")}
    with pytest.raises(ConfigurationError, match=f"'{name}' must be .* or more, not nan"):
        Processor(MemoryBackend(), **wrong)


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("memory://", "memory of this process"),
        ("sqlite:///jobs.db", "SQLite "),
        ("redis://localhost:6380/1", "localhost:6380"),
        ("postgresql://localhost/app", "localhost"),
    ],
)
def test_a_processor_takes_the_url_of_its_backend(url: str, described: str) -> None:
    assert described in Processor(url).backend.describe()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_attempts": False}, "the setting 'log_attempts': expected `str`, got `bool`"),
        ({"queues": ("mail",)}, r"'queues\[0\]'.*; write QueueSettings\(\"mail\"\)"),
    ],
)
def test_a_setting_of_a_wrong_type_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Processor("memory://", **settings)
