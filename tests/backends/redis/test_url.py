"""URLs: what they mean, what is refused, and that no secret is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimburion.backends.redis.url import SCHEMES, RedisSettings, RedisTls, parse_url
from nimburion.backends.server.url import Credentials, Endpoint
from nimburion.core.errors import ConfigurationError

LOCAL = (Endpoint("localhost", 6379),)


def get_error(url: str) -> str:
    """The message that refuses this URL."""
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("redis://localhost", RedisSettings(kind="single", endpoints=LOCAL)),
        ("localhost", RedisSettings(kind="single", endpoints=LOCAL)),
        ("cache:7000", RedisSettings(kind="single", endpoints=(Endpoint("cache", 7000),))),
        ("REDIS://LocalHost:6379/", RedisSettings(kind="single", endpoints=LOCAL)),
        (
            "valkey://10.0.0.1:1/15",
            RedisSettings(kind="single", endpoints=(Endpoint("10.0.0.1", 1),), db=15),
        ),
        ("redis://localhost?", RedisSettings(kind="single", endpoints=LOCAL)),
        ("redis://localhost?db=3", RedisSettings(kind="single", endpoints=LOCAL, db=3)),
        ("redis://localhost/3?db=3", RedisSettings(kind="single", endpoints=LOCAL, db=3)),
        ("redis://[::1]:7/0", RedisSettings(kind="single", endpoints=(Endpoint("::1", 7),))),
        (
            "redis://[FE80::1%25eth0]",
            RedisSettings(kind="single", endpoints=(Endpoint("fe80::1%eth0", 6379),)),
        ),
        (
            "redis://job_cache-1.internal",
            RedisSettings(kind="single", endpoints=(Endpoint("job_cache-1.internal", 6379),)),
        ),
        ("rediss://localhost", RedisSettings(kind="single", endpoints=LOCAL, tls=RedisTls())),
        (
            "valkeys://localhost?tls_ca=/a%20b&tls_cert=c&tls_key=k&tls_verify=ca",
            RedisSettings(
                kind="single",
                endpoints=LOCAL,
                tls=RedisTls(ca="/a b", cert="c", key="k", verify="ca"),
            ),
        ),
        (
            "redis://:p%40%2F%3A%25@localhost",
            RedisSettings(kind="single", endpoints=LOCAL, credentials=Credentials(None, "p@/:%")),
        ),
        (
            "redis://u%3A:a:b@localhost",
            RedisSettings(kind="single", endpoints=LOCAL, credentials=Credentials("u:", "a:b")),
        ),
        (
            "redis://u@localhost",
            RedisSettings(kind="single", endpoints=LOCAL, credentials=Credentials("u")),
        ),
        (
            "redis://:p%C3%A4ss@localhost",
            RedisSettings(kind="single", endpoints=LOCAL, credentials=Credentials(None, "päss")),
        ),
        ("unix:///run/redis.sock", RedisSettings(kind="unix", socket_path="/run/redis.sock")),
        (
            "unix://u:p@/run/r%23.sock?db=2&namespace=a",
            RedisSettings(
                kind="unix",
                socket_path="/run/r#.sock",
                db=2,
                namespace="a",
                credentials=Credentials("u", "p"),
            ),
        ),
        (
            "redis+sentinel://a,b:2,[::1]:3,a/jobs",
            RedisSettings(
                kind="sentinel",
                service="jobs",
                endpoints=(Endpoint("a", 26379), Endpoint("b", 2), Endpoint("::1", 3)),
            ),
        ),
        (
            "rediss+sentinel://u:p@a/my%20master/4?sentinel_username=s&sentinel_password=t%26",
            RedisSettings(
                kind="sentinel",
                endpoints=(Endpoint("a", 26379),),
                service="my master",
                db=4,
                tls=RedisTls(),
                credentials=Credentials("u", "p"),
                sentinel_credentials=Credentials("s", "t&"),
            ),
        ),
        (
            "redis+cluster://a:7000,b/0",
            RedisSettings(kind="cluster", endpoints=(Endpoint("a", 7000), Endpoint("b", 6379))),
        ),
        (
            "rediss+cluster://a",
            RedisSettings(kind="cluster", endpoints=(Endpoint("a", 6379),), tls=RedisTls()),
        ),
        (
            (
                "redis://localhost?namespace=shop:1.x-y_z&require_durable=true"
                "&durable_enqueue=True&timeout=0.5"
            ),
            RedisSettings(
                kind="single",
                endpoints=LOCAL,
                namespace="shop:1.x-y_z",
                require_durable=True,
                durable_enqueue=True,
                timeout=0.5,
            ),
        ),
    ],
)
def test_what_a_url_means(url: str, settings: RedisSettings) -> None:
    assert parse_url(url) == settings


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "redis://…: a host is missing; expected something like localhost:6379/0"),
        ("redis://", "a host is missing"),
        ("redis:///0", "a host is missing"),
        ("redis://:6379", "a host is missing"),
        ("redis://u:p@", "a host is missing"),
        ("redis://::1", "a host is missing"),
        ("redis+cluster://a,,b", "a host is missing; expected something like one:7000,two:7000"),
        ("redis+cluster://a,", "a host is missing"),
        ("sqlite:///x.db", "not the URL of a Redis backend; these begin with redis://, rediss://"),
        ("redis://a b", "a host must be a name, an IPv4 address or an IPv6 address in []"),
        ("redis://-a", "a host must be"),
        ("redis://[::1", "a host must be"),
        ("redis://[::g]", "a host must be"),
        ("redis://a,b", "a host must be"),
        ("redis://" + "a" * 254, "a host must be"),
        ("redis://a:0", "a port must be a whole number from 1 to 65535"),
        ("redis://a:99999", "a port must be a whole number from 1 to 65535, found 99999"),
        ("redis://a:abc", "a port must be a whole number"),
        ("redis://a:-1", "a port must be"),
        ("redis://a:", "a port must be"),
        ("redis://a:1:2", "a port must be"),
        ("redis://a:" + "9" * 3000, "a port must be"),
        ("redis://a/abc", "db: expected a whole number from 0 to 1000000, found 'abc'"),
        ("redis://a/-1", "db: expected a whole number from 0 to 1000000, found '-1'"),
        ("redis://a/1/2", "db: expected a whole number"),
        ("redis://a/1?db=2", "db 2 as option, but 1 in the path; keep one of them"),
        ("redis://a?db=1.5", "db: expected a whole number from 0 to 1000000, found '1.5'"),
        ("redis+cluster://a/1", "db 1: a cluster has only db 0; leave it out"),
        ("redis+cluster://a?db=1", "no option 'db' here; that is for single servers and Sentinel."),
        ("redis+sentinel://a", "the name of the service is missing"),
        ("redis+sentinel://a/", "the name of the service is missing"),
        ("redis+sentinel://a/jobs/x", "db: expected a whole number"),
        ("unix://run/redis.sock", "expected the path of a socket from the root"),
        ("unix:///", "expected the path of a socket"),
        ("unix:///a%00b", "expected the path of a socket"),
        ("redis://u:p@q@a", "write @ / ? # as %40 %2F %3F %23"),
        ("redis://:p/q@a", "write @ / ? # as %40 %2F %3F %23"),
        ("redis://:p?q@a", "write @ / ? # as %40 %2F %3F %23"),
        ("redis://:p#q@a", "write @ / ? # as %40 %2F %3F %23"),
        ("redis://:@a", "the password is empty; without a password, leave out the colon"),
        ("redis://:50%@a", "a % must be followed by two hexadecimal digits"),
        ("redis://:%ff@a", "a %XX is not UTF-8"),
        ("redis://münchen", "a URL may contain only printable ASCII"),
        ("redis://a\0", "only printable ASCII"),
        ("redis://a\n", "only printable ASCII"),
        ("redis://\udc00", "only printable ASCII"),
        ("redis://" + "a" * 5000, "longer than 4096 characters"),
        ("redis://a?namespace", "expected name=value after the ?, separated by &"),
        ("redis://a?timeout=1&", "expected name=value after the ?"),
        ("redis://a?timeout=1&timeout=2", "option 'timeout' is repeated"),
        ("redis://a?namspace=x", "no option 'namspace' here; did you mean namespace? Known: db, "),
        ("redis://a?colour=x",
         "Known: db, namespace, require_durable, durable_enqueue, timeout"),
        ("redis://a?tls_ca=x", "no option 'tls_ca' here; that is for rediss://."),
        ("redis://a?sentinel_password=x", "that is for Sentinel."),
        ("redis://a?namespace={x}",
         "namespace: expected 1-64 characters of A-Z a-z 0-9 _ . : -, found '{x}'"),
        ("redis://a?namespace=", "namespace: expected 1-64 characters"),
        ("redis://a?namespace=" + "n" * 65, "namespace: expected 1-64 characters"),
        ("redis://a?require_durable=yes", "require_durable: expected true or false, found 'yes'"),
        ("redis://a?timeout=0", "timeout: expected seconds, above 0 and at most 3600, found '0'"),
        ("redis://a?timeout=nan", "timeout: expected seconds"),
        ("redis://a?timeout=inf", "timeout: expected seconds"),
        ("redis://a?timeout=5s", "timeout: expected seconds"),
        ("rediss://a?tls_verify=maybe", "tls_verify: expected full, ca or none, found 'maybe'"),
        ("rediss://a?tls_ca=", "tls_ca: expected a text"),
        ("rediss://a?tls_key=k", "tls_key without tls_cert"),
        ("rediss://a?tls_ca=c&tls_verify=none", "tls_verify=none checks no certificate"),
    ],
)  # fmt: skip
def test_an_invalid_url_is_explained(url: str, message: str) -> None:
    assert message in get_error(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@a:0",
        "redis://u:hunter2@a@b",
        "redis://u:hunter2/x@a",
        "redis://u:hunter2",
        "redis://:hunter2?x@a",
        "redis://:hunter2%@a",
        "rediss://:hunter2@a?tls_verify=x",
        "redis+sentinel://a/b?sentinel_password=hunter2&x=1",
        "redis+sentinel://a/b?sentinel_password=hunter2%00",
        "u:hunter2@h/x",
    ],
)
def test_a_secret_is_never_part_of_a_refusal(url: str) -> None:
    assert "hunter2" not in get_error(url)


@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://u:hunter2@localhost", "Redis localhost:6379/0"),
        ("redis://[::1]:7/2", "Redis [::1]:7/2"),
        ("rediss://localhost/1?namespace=shop", 'Redis localhost:6379/1 (TLS), namespace "shop"'),
        ("unix:///run/r.sock", "Redis socket /run/r.sock, db 0"),
        ("redis+sentinel://a,b/jobs?sentinel_password=hunter2",
         'Redis Sentinel service "jobs"/0 via a:26379, b:26379'),
        ("rediss+cluster://u:hunter2@a,b:2", "Redis Cluster via a:6379, b:2 (TLS)"),
    ],
)  # fmt: skip
def test_describe_is_one_line_without_secrets(url: str, connection: str) -> None:
    settings = parse_url(url)
    assert settings.describe() == connection
    assert "hunter2" not in repr(settings)


def test_arguments_override_the_url() -> None:
    settings = parse_url("redis://a?namespace=one&timeout=2&require_durable=true")
    assert settings.replace() == settings
    changed = settings.replace(
        namespace="two", require_durable=False, durable_enqueue=True, timeout=3
    )
    assert changed == parse_url("redis://a?namespace=two&timeout=3&durable_enqueue=true")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"namespace": "{a}"}, "Redis a:6379/0: namespace: expected 1-64 characters"),
        ({"namespace": ""}, "namespace: expected"),
        ({"timeout": 0}, "timeout: expected seconds"),
        ({"timeout": "soon"}, "timeout: expected seconds"),
        ({"require_durable": "yes"}, "require_durable: expected true or false"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url("redis://a").replace(**arguments)
    assert message in str(caught.value)


PIECES = st.lists(
    st.sampled_from(
        ["a", "host", ":", "/", "@", "?", "&", "=", "#", "%", "%41", "%00", "%ff", "[", "]", "::1",
         ",", "6379", "-1", "db", "namespace", "tls_ca", "timeout", "{", "}", "\0", "ä", " ", "."]
    ),
    max_size=15,
).map("".join)  # fmt: skip


@given(st.sampled_from(sorted(SCHEMES)), PIECES)
def test_any_url_gives_settings_or_an_error(scheme: str, rest: str) -> None:
    try:
        settings = parse_url(f"{scheme}://{rest}")
    except ConfigurationError as error:
        assert str(error).startswith(f"{scheme}://…: ")  # noqa: PT017 (either is right)
    else:
        assert all(node.host and 1 <= node.port <= 65535 for node in settings.endpoints)
        assert settings.endpoints or settings.socket_path
