"""Parse a Redis URL into settings, and validate it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import msgspec

from nimburion.backends.server.url import (
    Credentials,
    Endpoint,
    InvalidUrl,
    OptionTable,
    UrlParts,
    UrlSettings,
    decode_percents,
    make_choice,
    parse_endpoint,
    parse_flag,
    parse_integer,
    parse_options,
    parse_text,
    parse_timeout,
    report_invalid_url,
    shorten,
    split_scheme,
    split_url,
)
from nimburion.core.errors import ConfigurationError

DEFAULT_NAMESPACE = "nimburion"
DEFAULT_TIMEOUT = 5.0
DEFAULT_PORT, DEFAULT_SENTINEL_PORT = 6379, 26379

ServerKind = Literal["single", "unix", "sentinel", "cluster"]
TlsVerify = Literal["full", "ca", "none"]

_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def _parse_namespace(text: str) -> str:
    """Validate a namespace. It becomes the hash tag of every key, so braces and blanks are not
    allowed.
    """
    if not _NAMESPACE.fullmatch(text):
        raise InvalidUrl(f"expected 1-64 characters of A-Z a-z 0-9 _ . : -, found {shorten(text)}")
    return text


def _parse_db(text: str) -> int:
    return parse_integer(text, 0, 1_000_000)


_DB: OptionTable = MappingProxyType({"db": _parse_db})
_OPTIONS: OptionTable = MappingProxyType(
    {
        "namespace": _parse_namespace,
        "require_durable": parse_flag,
        "durable_enqueue": parse_flag,
        "timeout": parse_timeout,
    }
)
_TLS_OPTIONS: OptionTable = MappingProxyType(
    {
        "tls_ca": parse_text,
        "tls_cert": parse_text,
        "tls_key": parse_text,
        "tls_verify": make_choice("full", "ca", "none"),
    }
)
_SENTINEL_OPTIONS: OptionTable = MappingProxyType(
    {"sentinel_username": parse_text, "sentinel_password": parse_text}
)
_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "db": "that is for single servers and Sentinel. ",
        **dict.fromkeys(_TLS_OPTIONS, "that is for rediss://. "),
        **dict.fromkeys(_SENTINEL_OPTIONS, "that is for Sentinel. "),
    }
)
"""What to say of options that only some kinds of URL accept."""


class RedisTls(msgspec.Struct, frozen=True, kw_only=True):
    """The TLS settings of a connection. All files are in PEM format."""

    ca: str | None = None
    """The file of trusted CA certificates; None: the certificates that the system trusts."""
    cert: str | None = None
    """The file of the client certificate, for servers that require one."""
    key: str | None = None
    """The file of the client's private key; None: it is in the file of the certificate."""
    verify: TlsVerify = "full"
    """How the server certificate is verified. `full`: a trusted authority must have signed it for
    this host. `ca`: a trusted authority must have signed it. `none`: any certificate is accepted,
    which does not protect against a man in the middle.
    """


class RedisSettings(UrlSettings, frozen=True, kw_only=True):
    """The settings that a URL of this backend holds."""

    OPTIONS: ClassVar[OptionTable] = _OPTIONS

    kind: ServerKind
    endpoints: tuple[Endpoint, ...] = ()
    """The server, the Sentinels, or some nodes of the cluster."""
    socket_path: str = ""
    """The path of the Unix socket, for URLs of kind `unix`."""
    service: str = ""
    """The service name of the primary at the Sentinels."""
    db: int = 0
    credentials: Credentials = Credentials()
    sentinel_credentials: Credentials = Credentials()
    tls: RedisTls | None = None
    namespace: str = DEFAULT_NAMESPACE
    require_durable: bool = False
    """Reject a server that can lose jobs, instead of logging a warning."""
    durable_enqueue: bool = False
    """Whether `enqueue` returns only when the job is on the server's disk."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds allowed for connecting, and then for each reply."""

    def describe(self) -> str:
        """Return a one-line description without secrets."""
        nodes = ", ".join(map(str, self.endpoints))
        text = {
            "single": f"Redis {nodes}/{self.db}",
            "unix": f"Redis socket {self.socket_path}, db {self.db}",
            "sentinel": f'Redis Sentinel service "{self.service}"/{self.db} via {nodes}',
            "cluster": f"Redis Cluster via {nodes}",
        }[self.kind]
        named = "" if self.namespace == DEFAULT_NAMESPACE else f', namespace "{self.namespace}"'
        return f"{text}{' (TLS)' if self.tls else ''}{named}"


class UrlScheme(msgspec.Struct, frozen=True):
    """The properties of a URL scheme, the part before `://`."""

    kind: ServerKind
    example: str
    """An example of what can follow the scheme."""
    tls: bool = False


_SINGLE = UrlScheme("single", "localhost:6379/0")
_SENTINEL = UrlScheme("sentinel", "one:26379,two:26379/mymaster/0")
_CLUSTER = UrlScheme("cluster", "one:7000,two:7000")


def _with_tls(scheme: UrlScheme) -> UrlScheme:
    return msgspec.structs.replace(scheme, tls=True)


SCHEMES: Mapping[str, UrlScheme] = MappingProxyType(
    {
        "redis": _SINGLE,
        "rediss": _with_tls(_SINGLE),
        "valkey": _SINGLE,
        "valkeys": _with_tls(_SINGLE),
        "unix": UrlScheme("unix", "/run/redis/redis.sock"),
        "redis+sentinel": _SENTINEL,
        "rediss+sentinel": _with_tls(_SENTINEL),
        "redis+cluster": _CLUSTER,
        "rediss+cluster": _with_tls(_CLUSTER),
    }
)


def parse_url(url: str) -> RedisSettings:
    """Parse a URL into settings; `host:port` alone means `redis://host:port`.

    Forms: `redis://user:password@host:6379/0`, with TLS `rediss://` (`valkey://` and `valkeys://`
    mean the same), `unix:///run/redis.sock?db=0`, `redis+sentinel://one:26379,two:26379/service/0`,
    `redis+cluster://one:7000,two:7000`. The last two also exist with TLS, as `rediss+`. In user,
    password, path and options, write characters with a meaning in URLs as `%` and two hexadecimal
    digits.

    Options after `?`: `namespace`, `require_durable`, `durable_enqueue`, `timeout` (seconds), `db`;
    with TLS `tls_ca`, `tls_cert`, `tls_key` (files), `tls_verify` (`full`, `ca` or `none`); with
    Sentinel `sentinel_username`, `sentinel_password`.

    Raises:
        ConfigurationError: the URL is invalid. The message says what is wrong and what is allowed;
            it never shows a password.

    >>> parse_url("redis+sentinel://a,b:26380/jobs/2?namespace=shop").describe()
    'Redis Sentinel service "jobs"/2 via a:26379, b:26380, namespace "shop"'
    """
    scheme, rest = split_scheme(url, "redis")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigurationError(f"not the URL of a Redis backend; these begin with {known}")
    with report_invalid_url(f"{scheme}://…"):
        return _make_settings(SCHEMES[scheme], split_url(rest))


def _make_settings(scheme: UrlScheme, parts: UrlParts) -> RedisSettings:
    service, db = _split_service_and_db(scheme, parts.path)
    in_path: int | None = parse_options({"db": db} if db else {}, _DB).get("db")
    values = parse_options(parts.options, _list_options(scheme), _HINTS)
    return RedisSettings(
        kind=scheme.kind,
        endpoints=_parse_endpoints(parts.hosts, scheme),
        socket_path=_parse_socket_path(parts) if scheme.kind == "unix" else "",
        service=service,
        db=_choose_db(scheme, in_path, values.get("db", in_path)),
        credentials=parts.credentials,
        sentinel_credentials=Credentials(
            values.get("sentinel_username"), values.get("sentinel_password")
        ),
        tls=_make_tls(values) if scheme.tls else None,
        **RedisSettings.select_options(values),
    )


def _list_options(scheme: UrlScheme) -> OptionTable:
    """Return the options of the URLs of a scheme."""
    return {
        **({} if scheme.kind == "cluster" else _DB),
        **(_SENTINEL_OPTIONS if scheme.kind == "sentinel" else {}),
        **(_TLS_OPTIONS if scheme.tls else {}),
        **_OPTIONS,
    }


# --- parts of the URL -----------------------------------------------------------------------------


def _parse_endpoints(hosts: str, scheme: UrlScheme) -> tuple[Endpoint, ...]:
    if scheme.kind == "unix":
        return ()
    default = DEFAULT_SENTINEL_PORT if scheme.kind == "sentinel" else DEFAULT_PORT
    texts = [hosts] if scheme.kind == "single" else hosts.split(",")
    return tuple(dict.fromkeys(parse_endpoint(text, default, scheme.example) for text in texts))


def _parse_socket_path(parts: UrlParts) -> str:
    path = decode_percents(parts.path)
    if parts.hosts or len(path) < 2 or "\0" in path:
        raise InvalidUrl(
            "expected the path of a socket from the root: unix:///run/redis/redis.sock"
        )
    return path


def _split_service_and_db(scheme: UrlScheme, path: str) -> tuple[str, str]:
    """Split the path into the Sentinel service name and the db."""
    if scheme.kind == "unix":
        return "", ""
    first, _, rest = path.removeprefix("/").partition("/")
    if scheme.kind != "sentinel":
        first, rest = "", path.removeprefix("/")
    elif not first:
        raise InvalidUrl(f"the name of the service is missing; expected like {scheme.example}")
    return decode_percents(first), rest.removesuffix("/")


def _choose_db(scheme: UrlScheme, in_path: int | None, db: int | None) -> int:
    """Return the db from the path or from the option. Different ones are an error."""
    if scheme.kind == "cluster" and in_path:
        raise InvalidUrl(f"db {in_path}: a cluster has only db 0; leave it out")
    if in_path is not None and db != in_path:
        raise InvalidUrl(f"db {db} as option, but {in_path} in the path; keep one of them")
    return db or 0


def _make_tls(values: Mapping[str, Any]) -> RedisTls:
    tls = RedisTls(
        **{name.removeprefix("tls_"): values[name] for name in _TLS_OPTIONS if name in values}
    )
    if tls.key and not tls.cert:
        raise InvalidUrl("tls_key without tls_cert; name the certificate too")
    if tls.ca and tls.verify == "none":
        raise InvalidUrl("tls_ca, but tls_verify=none checks no certificate; keep one of them")
    return tls
