"""No secret is shown: not by the redaction itself, and not by any message that quotes a URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion import config
from nimburion.backends import open_backend
from nimburion.cli.invocation import Invocation
from nimburion.core.errors import NimburionError
from nimburion.core.settings import Settings
from nimburion.core.text.redaction import redact_url, redact_urls, redact_value
from nimburion.jobs import Processor

SECRET = "hunter2"

SHAPES = [
    "redis://u:hunter2@h",
    "redis://:hunter2@h:6379/0",
    "redis://hunter2@h",
    "redis://hunter2:@h",
    "redis://u:hunter2@",
    "redis://u:hunter2",
    "redis://u:hunter2@h:port",
    "redis://u:hunter2@h:99999999",
    "redis://u:hunter2/x@h",
    "redis://u:a@hunter2@h",
    "redis://u:x?hunter2@h",
    "redis://u:x#hunter2@h",
    "redis://u:hunter2@a,b:x",
    "redis://u%3Ahunter2@h",
    "redis://u:hunter2%40h",
    "redis://u:h%75nter2hunter2@h",
    "redis://h?password=hunter2",
    "redis://h?pasword=hunter2&timeout=2",
    "redis://h?timeout=2&passwrd=hunter2",
    "redis://h?hunter2",
    "redis://h?hunter2=1",
    "redis://h?password=a@hunter2",
    "redis://h?password=a&hunter2",
    "redis+sentinel://h/s?sentinel_password=hunter2",
    "redis+sentinel://h/s?sentinelpassword=hunter2",
    "redis+cluster://u:hunter2@a:1,b:2",
    "unix://u:hunter2@/run/redis.sock",
    "postgresql://u:hunter2@h/d",
    "postgres://u:hunter2@[::1]:5432/d?sslmod=hunter2",
    "postgresql:///d?user=u&password=hunter2",
    "postgresql://u:hunter2",
    "postgresql://u%3Ahunter2@h",
    "sqlite://u:hunter2@h",
    "sqlite://u:hunter2@h/x.db",
    "sqlite:///x.db?key=hunter2",
    "memory://u:hunter2@h",
    "memory://?password=hunter2",
    "no-such-backend://u:hunter2@h",
    "u:hunter2@redis://h",
    "u:hunter2@h:6379",
    "u:hunter2",
    "redis:/u:hunter2@h",
    "redis:u:hunter2@h",
    "//u:hunter2@h",
    "://u:hunter2@h",
    "host=h password=hunter2",
    "password%3Dhunter2",
    " redis://u:hunter2@h",
    "redis://u:hunter2@h\n",
]


@pytest.mark.parametrize("url", SHAPES)
def test_the_redaction_hides_the_secret(url: str) -> None:
    assert SECRET not in redact_url(url)
    assert SECRET not in repr(Settings(url=url))


@pytest.mark.parametrize("url", SHAPES)
def test_no_message_about_a_url_quotes_the_secret(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messages = []
    invocation = Invocation()
    invocation.backends = (url,)

    async def nothing(_: object) -> None:
        return None

    for attempt in (
        lambda: open_backend(url),
        lambda: Processor(url),
        lambda: config.load(jobs={"url": url}),
        lambda: config.load(jobs={"backend": f"redis://{url}"}),
        lambda: config.load(jobs={"concurrency": f"redis://{url}"}),
        lambda: config.load(jobs={"redis": {"url": url}}),
        lambda: config.load(jobs={"redis": {"addr": url}}),
        lambda: config.load(jobs={"postgres": {"addr": url}}),
        lambda: config.load(jobs={"postgres": {"sslmode": f"redis://{url}"}}),
        lambda: config.load(jobs={"sqlite": {"url": url}}),
        lambda: invocation.run(nothing, unopened=True),
    ):
        try:
            attempt()
        except (NimburionError, Exception) as error:  # noqa: BLE001 (click's among them)
            messages.append(f"{error}{getattr(error, 'message', '')}")
    assert messages
    assert [text for text in messages if SECRET in text] == []


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///jobs.db",
        "sqlite:////srv/app@2/jobs:1.db",
        "memory://",
        "redis://localhost:6379/0",
        "redis://[::1]:6379/0?namespace=shop&timeout=2",
        "redis+sentinel://a,b:26380/jobs/2",
        "unix:///run/redis.sock",
        "postgresql://app@one,two:5433/shop?schema=jobs&sslmode=require",
        "postgresql:///shop?host=/run/postgresql",
        "jobs.db",
        "localhost:6379",
    ],
)
def test_what_holds_no_secret_is_shown_whole(url: str) -> None:
    assert redact_url(url) == url


def test_the_message_of_a_driver_is_redacted_too() -> None:
    message = 'invalid dsn: "postgresql://u:hunter2@h/d", pwd=hunter2; see postgresql://h/d'
    assert redact_urls(message) == (
        'invalid dsn: "postgresql://u:***@h/d", pwd=***; see postgresql://h/d'
    )
    plain = "password authentication failed for user app"
    assert redact_urls(plain) == plain


def test_the_value_of_a_setting_is_redacted_where_it_looks_like_a_url() -> None:
    assert redact_value("1:30") == "1:30"
    assert redact_value("u:hunter2@h") == "***"
