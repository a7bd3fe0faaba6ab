"""File, environment and arguments, in that order, into typed settings."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from nimburion import config
from nimburion.backends import FAMILIES, open_backend
from nimburion.backends.postgres import url as postgres
from nimburion.backends.redis import url as address
from nimburion.backends.redis.url import RedisSettings, RedisTls, parse_url
from nimburion.backends.server.url import Credentials, Endpoint
from nimburion.config.schema import BACKENDS, Section
from nimburion.core.settings import (
    BatchSettings,
    JobSettings,
    KeyedLimitSettings,
    QueueLimitSettings,
    QueueSettings,
    Settings,
)
from nimburion.core.size_limits import SizeLimits

GUIDE = """
jobs:
  backend: redis
  redis:
    addr: localhost:6379
  concurrency: 10
  queues:
    - name: default
      priority: 1
    - name: critical
      priority: 10
    - name: low
      priority: 0
"""

GUIDE_QUEUES = """
jobs:
  queues:
    - name: critical
      priority: 10
      concurrency: 5
    - name: default
      priority: 5
      concurrency: 10
    - name: low
      priority: 1
      concurrency: 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load_text(text: str, **arguments: object) -> Settings:
    Path("config.yaml").write_text(text, encoding="utf-8")
    return config.load(**arguments).jobs  # type: ignore[arg-type]


def test_without_settings_the_backend_is_a_file_in_the_working_directory(folder: Path) -> None:
    loaded = config.load()
    assert loaded.source is None
    assert loaded.jobs == msgspec.structs.replace(
        Settings(), url=f"sqlite:///{folder}/nimburion.db"
    )


def test_the_guides_configuration_loads_unchanged(folder: Path) -> None:
    jobs = load_text(GUIDE)
    assert (jobs.url, jobs.concurrency) == ("redis://localhost:6379/0", 10)
    assert jobs.queues == (
        QueueSettings("default", 1),
        QueueSettings("critical", 10),
        QueueSettings("low", 0),
    )
    assert config.load().source == f"{folder}/config.yaml"


def test_limits_of_jobs_are_loaded(folder: Path) -> None:
    jobs = load_text("""
jobs:
  overrides:
    - {name: send, concurrency: 5, rate: 100/min, burst: 10}
    - {name: digest, batch: {size: 50, wait: 500ms}}
    - {name: index, batch: 20}
  keyed_limits:
    - {name: "sync:customer", concurrency: 2}
  queue_limits:
    - {name: mail, concurrency: 10, rate: 100/min}
""")
    assert jobs.overrides == (
        JobSettings(name="send", concurrency=5, rate="100/min", burst=10),
        JobSettings(name="digest", batch=BatchSettings(50, 0.5)),
        JobSettings(name="index", batch=BatchSettings(20)),
    )
    assert jobs.keyed_limits == (KeyedLimitSettings(name="sync:customer", concurrency=2),)
    assert jobs.queue_limits == (QueueLimitSettings("mail", concurrency=10, rate="100/min"),)


def test_the_guides_queues_load_unchanged(folder: Path) -> None:
    jobs = load_text(GUIDE_QUEUES)
    assert jobs.queues[0] == QueueSettings("critical", 10, 5)
    assert jobs.url == f"sqlite:///{folder}/nimburion.db"


@pytest.mark.parametrize(
    ("lines", "url"),
    [
        ("url: memory://", "memory://"),
        ("backend: memory", "memory://"),
        ("{backend: sqlite, sqlite: {path: /srv/j.db}}", "sqlite:////srv/j.db"),
        ("sqlite: {path: /srv/j.db}", "sqlite:////srv/j.db"),
        ("sqlite: {url: 'sqlite:////srv/j.db?x=1'}", "sqlite:////srv/j.db?x=1"),
        ("{backend: redis}", "redis://localhost:6379/0"),
        ("{backend: redis, redis: {url: cache:7000}}", "redis://cache:7000/0"),
        ("{redis: {addr: cache, db: 2, tls: true}}", "rediss://cache:6379/2"),
        ("{redis: {addr: '[::1]:7'}}", "redis://[::1]:7/0"),
        ("{redis: {password: 0123}}", "redis://:0123@localhost:6379/0"),
        ("{redis: {username: u, password: 'p@/:'}}", "redis://u:p%40%2F%3A@localhost:6379/0"),
        ("redis: {url: 'rediss://u:p@cache/1'}", "rediss://u:p@cache/1"),
        ("redis: {url: 'unix:///run/r.sock?db=1'}", "unix:///run/r.sock?db=1"),
        ("redis: {url: 'redis+cluster://a,b', namespace: shop}",
         "redis+cluster://a,b?namespace=shop"),
        ("{backend: redis, url: 'rediss+sentinel://a,b/jobs'}", "rediss+sentinel://a,b/jobs"),
        ("redis: {url: 'redis://a?db=1', timeout: 500ms, require_durable: true}",
         "redis://a?db=1&require_durable=true&timeout=0.5"),
        ("redis: {addr: a, namespace: 'shop:1', durable_enqueue: false}",
         "redis://a:6379/0?namespace=shop:1&durable_enqueue=false"),
        ("redis: {addr: a, tls: true, tls_ca: '/c a.pem', tls_verify: ca}",
         "rediss://a:6379/0?tls_ca=/c%20a.pem&tls_verify=ca"),
        ("redis: {url: 'rediss://a', tls_cert: /c, tls_key: /k}",
         "rediss://a?tls_cert=/c&tls_key=/k"),
        ("{backend: postgres, postgres: {url: 'postgresql://h/d'}}", "postgresql://h/d"),
        ("postgres: {addr: h, username: u, database: d}", "postgresql://u@h:5432/d"),
        ("{backend: postgres, url: 'postgres://h/d'}", "postgres://h/d"),
        ("postgres: {url: 'postgresql://a,b/d?schema=x', timeout: 500ms, pooler: 'yes'}",
         "postgresql://a,b/d?schema=x&pooler=yes&timeout=0.5"),
        ("postgres: {database: d, schema: jobs, connections: 8}",
         "postgresql://localhost:5432/d?schema=jobs&connections=8"),
        ("postgres: {addr: h, sslmode: verify-full, sslrootcert: '/c a.pem'}",
         "postgresql://h:5432/?sslmode=verify-full&sslrootcert=/c%20a.pem"),
    ],
)  # fmt: skip
def test_a_backend_can_be_configured_in_several_ways(lines: str, url: str) -> None:
    indented = lines.replace("\n", "\n  ")
    assert load_text(f"jobs:\n  {indented}").url == url


def test_relative_paths_are_taken_from_the_working_directory(folder: Path) -> None:
    assert load_text("jobs: {url: 'sqlite:///data/../x.db'}").url == f"sqlite:///{folder}/x.db"
    assert load_text("jobs: {sqlite: {path: x.db}}").url == f"sqlite:///{folder}/x.db"


def test_files_of_redis_are_taken_from_the_working_directory(folder: Path) -> None:
    url = load_text("jobs: {redis: {tls: true, tls_ca: 'ca & co.pem'}}").url
    assert url == f"rediss://localhost:6379/0?tls_ca={folder}/ca%20%26%20co.pem"
    assert parse_url(url).tls == RedisTls(ca=f"{folder}/ca & co.pem")


def test_every_url_that_the_section_makes_is_understood() -> None:
    section = {
        "addr": "cache:7000", "username": "u%", "password": "p@/:?#%ä", "db": 3, "tls": True,
        "tls_ca": "/ca", "tls_cert": "/cert", "tls_key": "/key", "tls_verify": "ca",
        "namespace": "shop:1", "require_durable": True, "durable_enqueue": True,
        "timeout": timedelta(seconds=1.5),
    }  # fmt: skip
    assert parse_url(config.load(jobs={"redis": section}).jobs.url) == RedisSettings(
        kind="single",
        endpoints=(Endpoint("cache", 7000),),
        db=3,
        credentials=Credentials("u%", "p@/:?#%ä"),
        tls=RedisTls(ca="/ca", cert="/cert", key="/key", verify="ca"),
        namespace="shop:1",
        require_durable=True,
        durable_enqueue=True,
        timeout=1.5,
    )
    redis = BACKENDS["redis"]
    assert isinstance(redis, Section)
    assert section.keys() | {"url"} == redis.keys.keys()


def test_every_url_that_the_section_of_postgres_makes_is_understood() -> None:
    section = {
        "addr": "db:7000", "username": "u%", "password": "p@/:?#%ä", "database": "a b",
        "schema": "jobs", "sslmode": "verify-ca", "sslrootcert": "/ca",
        "sslcert": "/cert", "sslkey": "/key", "connections": 7, "pooler": "no",
        "timeout": timedelta(seconds=1.5),
    }  # fmt: skip
    assert postgres.parse_url(
        config.load(jobs={"postgres": section}).jobs.url
    ) == postgres.PostgresSettings(
        endpoints=(Endpoint("db", 7000),),
        credentials=Credentials("u%", "p@/:?#%ä"),
        database="a b",
        schema="jobs",
        tls=postgres.PostgresTls(
            sslmode="verify-ca", sslrootcert="/ca", sslcert="/cert", sslkey="/key"
        ),
        connections=7,
        pooler="no",
        timeout=1.5,
    )
    options = BACKENDS["postgres"]
    assert isinstance(options, Section)
    assert section.keys() | {"url"} == options.keys.keys()


def test_settings_show_no_password() -> None:
    url = "redis+sentinel://:hunter2@a/jobs?sentinel_password=hunter2&db=1"
    assert load_text(f"jobs: {{url: '{url}'}}").url == url
    assert "hunter2" not in repr(config.load())
    assert "&db=1" in repr(config.load())


def test_the_schemes_of_servers_are_those_of_their_backends() -> None:
    assert set(FAMILIES["redis"]) == address.SCHEMES.keys()
    assert set(FAMILIES["postgres"]) == {*postgres.SCHEMES}


@pytest.mark.parametrize("name", ["50%.db", "why?.db", "a#b.db", "%20.db", "two words.db"])
def test_a_file_of_any_name_is_found_again(name: str, folder: Path) -> None:
    url = load_text(f"jobs: {{sqlite: {{path: '{name}'}}}}").url
    assert open_backend(url).describe() == f"SQLite {folder / name}"
    assert load_text(f"jobs: {{url: '{url}'}}").url == url


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0), ("5m", 300.0), ("1h30m", 5400.0), ("90d", 7_776_000.0), ("1.5s", 1.5),
        ("1500ms", 1.5), ("2", 2.0), ("2.5", 2.5), ("0x10", 16.0), ("012", 12.0), ("1e1", 10.0),
    ],
)  # fmt: skip
def test_durations_are_seconds_or_have_units(text: str, seconds: float) -> None:
    assert load_text(f"jobs: {{session_ttl: {text}}}").session_ttl == seconds


@pytest.mark.parametrize("text", ["none", "null", "~", ""])
def test_some_settings_can_be_none(text: str) -> None:
    jobs = load_text(f"jobs:\n  keep_failed: {text}\n  timeout: {text}")
    assert (jobs.keep_failed, jobs.timeout) == (None, None)


def test_sizes_are_bytes_or_have_units() -> None:
    jobs = load_text("jobs: {sizes: {payload: 2MiB, result: 1000, error: 1KB}}")
    assert jobs.sizes == SizeLimits(payload=2 * 1024**2, result=1000, error=1000)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "jobs:\n", "jobs: {}", "jobs: ~"])
def test_an_empty_file_or_section_means_the_defaults(text: str) -> None:
    assert load_text(text).concurrency == Settings().concurrency


def test_a_byte_order_mark_is_no_content() -> None:
    assert load_text("\ufeffjobs: {concurrency: 3}").concurrency == 3


def test_the_environment_lies_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMBURION_JOBS__CONCURRENCY", "20")
    monkeypatch.setenv("NIMBURION_JOBS__QUEUES", "[{name: mail, priority: 2}]")
    monkeypatch.setenv("NIMBURION_JOBS__REDIS__PASSWORD", "{not: yaml")
    monkeypatch.setenv("NIMBURION_JOBS__SIZES", "{batch: 7}")
    monkeypatch.setenv("NIMBURION_JOBS__SIZES__NESTING", "8")
    jobs = load_text(GUIDE)
    assert jobs.concurrency == 20
    assert jobs.queues == (QueueSettings("mail", 2),)
    assert jobs.url == "redis://:%7Bnot%3A%20yaml@localhost:6379/0"
    assert jobs.sizes == SizeLimits(batch=7, nesting=8)


def test_arguments_lie_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMBURION_JOBS__CONCURRENCY", "20")
    jobs = load_text(
        GUIDE,
        jobs={
            "concurrency": 30,
            "grace": timedelta(minutes=1),
            "queues": (QueueSettings("x"), {"name": "y"}),
            "sizes": {"batch": 5},
        },
    )
    assert (jobs.concurrency, jobs.grace) == (30, 60.0)
    assert jobs.queues == (QueueSettings("x"), QueueSettings("y"))
    assert jobs.sizes.batch == 5


@pytest.mark.parametrize(
    ("file", "variables", "url"),
    [
        (GUIDE, {"URL": "memory://"}, "memory://"),
        (GUIDE, {"BACKEND": "memory"}, "memory://"),
        (GUIDE, {"REDIS__ADDR": "other:1"}, "redis://other:1/0"),
        ("jobs: {url: 'redis://a:1/0'}", {"BACKEND": "memory"}, "memory://"),
        ("jobs: {url: 'redis://a:1/0'}", {"REDIS__ADDR": "b:1"}, "redis://b:1/0"),
        ("jobs: {backend: memory, redis: {addr: a}}", {"BACKEND": "redis"}, "redis://a:6379/0"),
    ],
)
def test_a_backend_of_a_stronger_source_replaces_the_weaker_one(
    file: str, variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"NIMBURION_JOBS__{name}", value)
    assert load_text(file).url == url


def test_a_section_of_another_backend_is_reported_as_unused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "nimburion.config"):
        load_text("jobs: {backend: memory, redis: {addr: a}}")
    assert caplog.messages == ["jobs.redis is not used: jobs.backend is memory"]


def test_the_file_is_the_named_one_then_the_variables_then_the_usual_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(["config.yaml", "variable.yaml", "named.yaml"], 1):
        (folder / name).write_text(f"jobs: {{concurrency: {number}}}")
    assert config.load().jobs.concurrency == 1
    monkeypatch.setenv("NIMBURION_CONFIG", "variable.yaml")
    assert config.load().jobs.concurrency == 2
    assert config.load("named.yaml").jobs.concurrency == 3
    assert config.load(folder / "named.yaml").source == str(folder / "named.yaml")


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NIMBURION_PORT", "NIMBURION_SERVICE_HOST", "NIMBURION_JOBS_PORT_6379_TCP"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:6379")
    assert config.load().jobs.concurrency == Settings().concurrency


def test_the_result_cannot_be_changed() -> None:
    loaded = config.load()
    with pytest.raises(AttributeError):
        loaded.jobs.concurrency = 1  # type: ignore[misc]


def test_a_queue_may_be_only_a_name(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("jobs:\n  queues: [mail, {name: slow, priority: 1}]\n")
    queues = config.load(file).jobs.queues
    assert [(queue.name, queue.priority) for queue in queues] == [("mail", 0), ("slow", 1)]
