"""Backends by URL: found, or refused with what to write instead."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from nimburion.backends import ENTRY_POINT_GROUP, SCHEMES, open_backend
from nimburion.backends.redis import RedisBackend
from nimburion.backends.redis import url as address
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.errors import ConfigurationError
from nimburion.testing.clock import FakeClock


class CustomBackend:
    """A backend of another package, with what `open_backend` needs."""

    def __init__(self, url: str, options: dict[str, object]) -> None:
        self.url = url
        self.options = options

    @classmethod
    def from_url(cls, url: str, **options: object) -> CustomBackend:
        return cls(url, options)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///jobs.db", "jobs.db"),
        ("SQLite:///data/jobs.db", "data/jobs.db"),
        ("sqlite:////srv/jobs.db", "/srv/jobs.db"),
        ("sqlite:///with%20blank.db", "with blank.db"),
    ],
)
def test_sqlite_urls(url: str, path: str) -> None:
    backend = open_backend(url)
    assert isinstance(backend, SQLiteBackend)
    assert backend.path == Path(path).absolute()
    assert backend.describe() == f"SQLite {Path(path).absolute()}"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://localhost", "Redis localhost:6379/0"),
        ("VALKEYS://u:secret@localhost/1", "Redis localhost:6379/1 (TLS)"),
        ("unix:///run/redis.sock", "Redis socket /run/redis.sock, db 0"),
        ("redis+sentinel://a,b/jobs", 'Redis Sentinel service "jobs"/0 via a:26379, b:26379'),
        ("rediss+cluster://a", "Redis Cluster via a:6379 (TLS)"),
    ],
)
def test_redis_urls(url: str, line: str) -> None:
    backend = open_backend(url)
    assert isinstance(backend, RedisBackend)
    assert backend.describe() == line


def test_every_redis_scheme_opens_the_redis_backend() -> None:
    assert {
        scheme for scheme, place in SCHEMES.items() if place.endswith(":RedisBackend")
    } == address.SCHEMES.keys()


def test_options_are_passed_to_the_redis_backend() -> None:
    backend = open_backend("redis://localhost?namespace=one", namespace="two", timeout=2.0)
    assert isinstance(backend, RedisBackend)
    assert (backend.settings.namespace, backend.settings.timeout) == ("two", 2.0)
    with pytest.raises(ConfigurationError, match="namespace: expected"):
        open_backend("redis://localhost", namespace="{}")


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nimburion.backends.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"'redis'.*pip install 'nimburion\[redis\]'"):
        open_backend("redis://localhost")


def test_memory_urls() -> None:
    assert not open_backend("memory://").capabilities.durable


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("jobs.db", "is not the URL of a backend; write one like sqlite:///jobs.db"),
        ("://x", "is not the URL of a backend"),
        ("sqlite:jobs.db", "is not the URL of a backend"),
        ("sqlite://jobs.db", "does not name a SQLite file"),
        ("sqlite:///", "does not name a SQLite file"),
        ("sqlite:///a.db?mode=ro", "does not name a SQLite file"),
        ("sqlit:///jobs.db", "did you mean sqlite?"),
        ("memroy://", "did you mean memory?"),
        ("postgre://h/d", "did you mean postgres"),
        ("mysql://h/d", "Known here: memory, postgres, postgresql, redis, redis+cluster"),
        ("redi://h", "did you mean redis"),
        ("redis://u:secret@", "redis://…: a host is missing"),
        ("redis+sentinel://h", "the name of the service is missing"),
        ("postgresql://u:secret@h:x/d", "postgresql://…: a port must be a whole number"),
        ("postgresql://u:secret@h/d?shema=a", "did you mean schema?"),
    ],
)
def test_an_invalid_url_is_explained(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_backend(url)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unknown_option_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match=r"backend 'sqlite': .*colour"):
        open_backend("sqlite:///jobs.db", colour="blue")
    with pytest.raises(ConfigurationError, match=r"no option 'prefix'; known: .*schema"):
        open_backend("postgresql://localhost/app", prefix="a_")


def test_options_are_passed_to_the_backend() -> None:
    clock = FakeClock()
    backend = open_backend("sqlite:///jobs.db", clock=clock)
    assert isinstance(backend, SQLiteBackend)
    assert backend._file.clock is clock


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_backend("user:secret@host")
    assert "secret" not in str(caught.value)


def test_a_third_party_backend_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("shop", f"{__name__}:CustomBackend", ENTRY_POINT_GROUP)

    def entry_points(*, group: str, name: str | None = None) -> list[metadata.EntryPoint]:
        return [one for one in [entry] if group == ENTRY_POINT_GROUP and name in {None, one.name}]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    backend = open_backend("shop://corner", till=3)
    assert isinstance(backend, CustomBackend)
    assert (backend.url, backend.options) == ("shop://corner", {"till": 3})
    with pytest.raises(ConfigurationError, match=r"did you mean shop\?.*memory, .*, shop, sqlite"):
        open_backend("shap://corner")
