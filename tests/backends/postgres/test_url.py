"""The URL of a PostgreSQL backend: what it can say, and what is refused without showing a
secret."""

from __future__ import annotations

import pytest

from nimburion.backends.postgres.url import PostgresSettings, PostgresTls, parse_url
from nimburion.backends.server.url import Credentials, Endpoint
from nimburion.core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("postgresql://", PostgresSettings()),
        ("postgres://h", PostgresSettings(endpoints=(Endpoint("h", 5432),))),
        ("h:7/d", PostgresSettings(endpoints=(Endpoint("h", 7),), database="d")),
        ("postgresql:///d", PostgresSettings(database="d")),
        (
            "PostgreSQL://u@H/",
            PostgresSettings(endpoints=(Endpoint("h", 5432),), credentials=Credentials("u")),
        ),
        (
            "postgresql://u%40:p%2F@h:1/a%20b",
            PostgresSettings(
                endpoints=(Endpoint("h", 1),), credentials=Credentials("u@", "p/"), database="a b"
            ),
        ),
        (
            "postgresql://a,b:2,[::1]:3/d",
            PostgresSettings(
                endpoints=(Endpoint("a", 5432), Endpoint("b", 2), Endpoint("::1", 3)), database="d"
            ),
        ),
        (
            "postgresql:///d?host=/run/postgresql",
            PostgresSettings(endpoints=(Endpoint("/run/postgresql", 5432),), database="d"),
        ),
        (
            "postgresql://%2Frun:7/d",
            PostgresSettings(endpoints=(Endpoint("/run", 7),), database="d"),
        ),
        (
            "postgresql:///?host=a,b&port=1,2&dbname=d&user=u&password=p",
            PostgresSettings(
                endpoints=(Endpoint("a", 1), Endpoint("b", 2)),
                database="d",
                credentials=Credentials("u", "p"),
            ),
        ),
        (
            "postgresql://a,b/?port=7",
            PostgresSettings(endpoints=(Endpoint("a", 7), Endpoint("b", 7))),
        ),
        ("postgresql:///?port=7", PostgresSettings(endpoints=(Endpoint("localhost", 7),))),
        (
            "postgresql://?sslmode=verify-full&sslrootcert=/ca&sslcert=/c&sslkey=/k",
            PostgresSettings(
                tls=PostgresTls(sslmode="verify-full", sslrootcert="/ca", sslcert="/c", sslkey="/k")
            ),
        ),
        (
            "postgresql://?target_session_attrs=any&application_name=shop&connect_timeout=2",
            PostgresSettings(target="any", application_name="shop", timeout=2.0),
        ),
        (
            "postgresql://?schema=jobs&timeout=0.5&connections=9&pooler=yes",
            PostgresSettings(schema="jobs", timeout=0.5, connections=9, pooler="yes"),
        ),
    ],
)
def test_it_is_read(url: str, settings: PostgresSettings) -> None:
    assert parse_url(url) == settings


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://h/d", "begins with postgresql://"),
        ("postgresql://u:secret@h:0/d", "a port must be a whole number from 1 to 65535"),
        ("postgresql://u:secret@h:secret/d", "a port must be a whole number"),
        ("postgresql://u:secret@a,,b/d", "a host is missing"),
        ("postgresql://u:secret@h/d#x", "write @ / ? # as"),
        ("postgresql://u:sec%ret@h/d", "a % must be followed by two hexadecimal digits"),
        ("postgresql://u:@h/d", "the password is empty"),
        ("postgresql://h/d?colour=blue", "no option 'colour' here; "),
        ("postgresql://h/d?shema=x", "did you mean schema?"),
        ("postgresql://h/d?schema=Jobs", "schema: expected 1-40 characters of a-z 0-9 _"),
        ("postgresql://h/d?schema=pg_x", "not pg_"),
        (
            "postgresql://h/d?prefix=a_",
            "no option 'prefix' here; table names have no prefix: choose another `schema`.",
        ),
        ("postgresql://h/d?sslmode=on", "sslmode: expected disable, allow, prefer, require"),
        ("postgresql://h/d?sslkey=k", "sslkey without sslcert"),
        ("postgresql://h/d?timeout=0", "timeout: expected seconds, above 0"),
        ("postgresql://h/d?connections=0", "connections: expected a whole number from 1"),
        ("postgresql://h/d?pooler=maybe", "pooler: expected auto, yes or no, found 'maybe'"),
        ("postgresql://h/d?host=x", "host: is also set before the path"),
        ("postgresql://a,b/d?port=1,2,3", "port: 3 ports for 2 hosts"),
        ("postgresql://h/d?dbname=x", "dbname: is also set before the ?"),
        ("postgresql://u@h/d?user=x", "user: is also set before the ?"),
        ("postgresql://u:secret@h/d?password=secret", "password: is also set before the ?"),
        ("postgresql://u:secret@h/d?schema=a&schema=b", "is repeated"),
    ],
)
def test_an_invalid_url_is_explained_without_secrets(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_describe_is_one_line_without_secrets() -> None:
    settings = parse_url("postgresql://u:secret@one,two:7/shop?schema=jobs")
    assert settings.describe() == 'PostgreSQL one:5432, two:7/shop, schema "jobs"'
    assert parse_url("postgresql:///d").describe() == "PostgreSQL on this machine/d"
    assert "secret" not in repr(settings) + repr(settings.credentials)


def test_arguments_override_url_options() -> None:
    settings = parse_url("postgresql://h/d?schema=jobs").replace(
        schema="other", timeout=2, connections=1
    )
    assert (settings.schema, settings.timeout, settings.connections) == ("other", 2.0, 1)
    with pytest.raises(ConfigurationError, match=r"PostgreSQL h:5432/d.*: schema: expected"):
        settings.replace(schema="A")
    with pytest.raises(ConfigurationError, match="pooler: expected auto"):
        settings.replace(pooler="perhaps")
