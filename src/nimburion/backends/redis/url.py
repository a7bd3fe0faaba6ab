"""Parse a Redis URL into settings, and validate it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from nimburion.backends.server.url import (
    Credentials,
    Endpoint,
    InvalidUrl,
    UrlOptions,
    decode_percents,
    make_options,
    parse_credentials,
    parse_endpoint,
    parse_flag,
    parse_integer,
    parse_query,
    parse_seconds,
    parse_text,
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

_MAX_DB = 1_000_000


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


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that a URL of this backend holds."""

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

    def __repr__(self) -> str:
        return f"Address({self.describe()})"

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

    def replace(
        self,
        *,
        namespace: str | None = None,
        require_durable: bool | None = None,
        durable_enqueue: bool | None = None,
        timeout: float | None = None,
    ) -> RedisSettings:
        """Return a copy in which every argument that is not None replaces the value of the URL.

        Raises:
            ConfigurationError: an argument has an invalid value.
        """
        options = make_options(
            namespace=namespace,
            require_durable=require_durable,
            durable_enqueue=durable_enqueue,
            timeout=timeout,
        )
        with report_invalid_url(self.describe()):
            return _apply_options(self, options)


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
        return _parse_settings(SCHEMES[scheme], rest)


def _parse_settings(scheme: UrlScheme, rest: str) -> RedisSettings:
    authority, path, query = split_url(rest)
    login, _, hosts = authority.rpartition("@")
    service, db = _split_service_and_db(scheme, path)
    options = UrlOptions(parse_query(query), OPTIONS_OF_OTHER_SCHEMES)
    settings = RedisSettings(
        kind=scheme.kind,
        endpoints=_parse_endpoints(hosts, scheme),
        socket_path=_parse_socket_path(hosts, path) if scheme.kind == "unix" else "",
        service=service,
        db=_choose_db(scheme, db, options),
        credentials=parse_credentials(login),
        sentinel_credentials=_read_sentinel_credentials(scheme, options),
        tls=_read_tls(scheme, options),
    )
    settings_with_options = _apply_options(settings, options)
    options.reject_unknown()
    return settings_with_options


def _apply_options(settings: RedisSettings, options: UrlOptions) -> RedisSettings:
    return msgspec.structs.replace(
        settings,
        namespace=options.read("namespace", parse_namespace, settings.namespace),
        require_durable=options.read("require_durable", parse_flag, settings.require_durable),
        durable_enqueue=options.read("durable_enqueue", parse_flag, settings.durable_enqueue),
        timeout=options.read("timeout", parse_seconds, settings.timeout),
    )


# --- parts of the URL -----------------------------------------------------------------------------


def _parse_endpoints(hosts: str, scheme: UrlScheme) -> tuple[Endpoint, ...]:
    if scheme.kind == "unix":
        return ()
    default = DEFAULT_SENTINEL_PORT if scheme.kind == "sentinel" else DEFAULT_PORT
    texts = [hosts] if scheme.kind == "single" else hosts.split(",")
    return tuple(dict.fromkeys(parse_endpoint(text, default, scheme.example) for text in texts))


def _parse_socket_path(hosts: str, path: str) -> str:
    if hosts or len(path) < 2 or "\0" in decode_percents(path):
        raise InvalidUrl(
            "expected the path of a socket from the root: unix:///run/redis/redis.sock"
        )
    return decode_percents(path)


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


def _choose_db(scheme: UrlScheme, text: str, options: UrlOptions) -> int:
    """Return the db from the path or from the option. Both together are an error."""
    in_path = UrlOptions({"db": text} if text else {}).read("db", _parse_db, None)
    if scheme.kind == "cluster":
        if in_path:
            raise InvalidUrl(f"db {in_path}: a cluster has only db 0; leave it out")
        return 0
    db = options.read("db", _parse_db, in_path)
    if in_path is not None and db != in_path:
        raise InvalidUrl(f"db {db} as option, but {in_path} in the path; keep one of them")
    return db or 0


def _parse_db(text: str) -> int:
    return parse_integer(text, 0, _MAX_DB)


def _read_sentinel_credentials(scheme: UrlScheme, options: UrlOptions) -> Credentials:
    if scheme.kind != "sentinel":
        return Credentials()
    username = options.read("sentinel_username", parse_text, None)
    password = options.read("sentinel_password", parse_text, None)
    return Credentials(username, password)


def _read_tls(scheme: UrlScheme, options: UrlOptions) -> RedisTls | None:
    if not scheme.tls:
        return None
    tls = RedisTls(
        ca=options.read("tls_ca", parse_text, None),
        cert=options.read("tls_cert", parse_text, None),
        key=options.read("tls_key", parse_text, None),
        verify=options.read("tls_verify", parse_verify, "full"),
    )
    if tls.key and not tls.cert:
        raise InvalidUrl("tls_key without tls_cert; name the certificate too")
    if tls.ca and tls.verify == "none":
        raise InvalidUrl("tls_ca, but tls_verify=none checks no certificate; keep one of them")
    return tls


TlsVerify = Literal["full", "ca", "none"]

_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

OPTIONS_OF_OTHER_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "db": "single servers and Sentinel",
        **dict.fromkeys(("tls_ca", "tls_cert", "tls_key", "tls_verify"), "rediss://"),
        **dict.fromkeys(("sentinel_username", "sentinel_password"), "Sentinel"),
    }
)
"""The options that only some kinds of URL accept."""


def parse_namespace(text: str) -> str:
    """Validate a namespace. It becomes the hash tag of every key, so braces and blanks are not
    allowed.
    """
    if not _NAMESPACE.fullmatch(text):
        raise InvalidUrl(f"expected 1-64 characters of A-Z a-z 0-9 _ . : -, found {shorten(text)}")
    return text


def parse_verify(text: str) -> TlsVerify:
    """Validate the value of `tls_verify`."""
    for scheme in ("full", "ca", "none"):
        if text == scheme:
            return scheme
    raise InvalidUrl(f"expected full, ca or none, found {shorten(text)}")
