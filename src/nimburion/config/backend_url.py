"""Build the URL of the backend from `url`, or from `backend` and the section of that name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast
from urllib.parse import quote, unquote, urlsplit

import msgspec

from nimburion.backends import FAMILIES
from nimburion.config.schema import BACKEND_KEYS, BACKENDS, Section
from nimburion.config.tree import Path, Written, drop_keys, get_part, make_refusal
from nimburion.core.errors import ConfigurationError

DEFAULT_FILE = "nimburion.db"
_ADDRESSES = frozenset({"url", "addr", "path"})
_PARTS = frozenset({"addr", "url", "username", "password", "db", "database", "tls"})
"""The settings of a server that are parts of its URL. All others are options of the URL, with the
same names.
"""
_PORTS_AND_DATABASES = MappingProxyType({"redis": (6379, "0"), "postgres": (5432, "")})
"""The port and the database of a server without these settings."""
_FILES = frozenset({"tls_ca", "tls_cert", "tls_key", "sslrootcert", "sslcert", "sslkey"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_log = logging.getLogger("nimburion.config")

Values = Mapping[str, object]


class BackendOptions(msgspec.Struct, frozen=True):
    """The settings of the backend: the tree with their places, and the parsed values."""

    tree: Written
    values: Values
    path: Path

    def make_error(self, key: str, problem: str) -> Exception:
        """Return the error for `key`, with its place."""
        place = getattr(get_part(self.tree, key), "place", self.tree.place)
        return make_refusal(place, (*self.path, key), problem)

    def select_section(self, name: str) -> BackendOptions:
        """Return the settings in the section of one backend."""
        tree = get_part(self.tree, name) or Written({}, self.tree.place)
        values = cast("Values", self.values.get(name, {}))
        return BackendOptions(tree, values, (*self.path, name))


def drop_superseded(lower: Written | None, upper: Written | None) -> Written | None:
    """Return `lower` without the settings that `upper` replaces.

    If `upper` names a backend, no setting of `lower` may name another.
    """
    if get_part(upper, "url") is not None:
        return drop_keys(lower, frozenset(BACKEND_KEYS))
    if get_part(upper, "backend") is not None or _has_address(upper):
        return drop_keys(lower, frozenset({"url"}))
    return lower


def _has_address(tree: Written | None) -> bool:
    sections = (get_part(tree, name) for name in BACKENDS)
    return any(get_part(section, key) is not None for section in sections for key in _ADDRESSES)


def make_backend_url(tree: Written, values: Values, path: Path) -> str:
    """Return the URL for `open_backend`; the path of a file in it is absolute.

    Raises:
        ConfigurationError: two settings contradict each other, or a setting does not fit.
    """
    given = BackendOptions(tree, values, path)
    if "url" in values:
        return _find_complete_url(given)
    name = _choose_backend(given)
    _log_unused(given, name)
    return _URLS[name](given.select_section(name))


def _find_complete_url(given: BackendOptions) -> str:
    url = str(given.values["url"])
    if not _find_scheme(url):
        raise given.make_error(
            "url",
            "expected the URL of a backend, like sqlite:///jobs.db or memory://",
        )
    backend = given.values.get("backend")
    if backend is not None and _find_scheme(url) not in FAMILIES[str(backend)]:
        problem = (
            f"{backend}, but jobs.url names a backend of scheme {_find_scheme(url)!r}; keep one"
        )
        raise given.make_error("backend", problem)
    for name in BACKENDS:
        if name in given.values:
            raise given.make_error(name, "jobs.url names the backend already; keep one of them")
    return make_absolute(url)


def _choose_backend(given: BackendOptions) -> str:
    if "backend" in given.values:
        return str(given.values["backend"])
    named = [name for name in BACKENDS if name in given.values]
    if len(named) > 1:
        raise given.make_error(
            named[1], f"two backends, {' and '.join(named)}: choose by jobs.backend"
        )
    return named[0] if named else "sqlite"


def _log_unused(given: BackendOptions, chosen: str) -> None:
    for name in BACKENDS:
        if name in given.values and name != chosen:
            _log.warning("jobs.%s is not used: jobs.backend is %s", name, chosen)


def _make_memory_url(_: BackendOptions) -> str:
    return "memory://"


def _make_sqlite_url(given: BackendOptions) -> str:
    _refuse_both(given, "path", "url")
    if "url" in given.values:
        return make_absolute(_find_section_url(given, "sqlite"))
    return make_sqlite_url(str(given.values.get("path", DEFAULT_FILE)))


def _make_server_url(given: BackendOptions) -> str:
    """Return the URL of a server: a whole one from the section, or one of its parts."""
    name, values = str(given.path[-1]), given.values
    if "://" in str(values.get("url")):
        _refuse_all(given, "url", ("addr", "username", "password", "db", "database", "tls"))
        return _with_options(given, _find_section_url(given, name))
    scheme = FAMILIES[name][0]
    if values.get("tls"):
        scheme += "s"
    elif tls := [key for key in values if key.startswith("tls_")]:
        raise given.make_error(tls[0], "is for TLS; set tls: true too")
    port, database = _PORTS_AND_DATABASES[name]
    database = quote(str(values.get("database", values.get("db", database))), safe="")
    place = f"{_format_login(given)}{_format_address(given, port)}/{database}"
    return _with_options(given, f"{scheme}://{place}")


def _with_options(given: BackendOptions, url: str) -> str:
    """Return the URL with the other settings in its query. Each may be set in one place only."""
    _, mark, query = url.partition("?")
    there = {pair.partition("=")[0] for pair in query.split("&")}
    pairs = []
    for option in cast("Section", BACKENDS[str(given.path[-1])]).keys:
        if option in given.values and option not in _PARTS:
            if option in there:
                raise given.make_error(option, "url sets this already; keep one of them")
            pairs.append(f"{option}={_format_option(option, given.values[option])}")
    return f"{url}{'&' if mark else '?'}{'&'.join(pairs)}" if pairs else url


def _format_option(option: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return quote(make_absolute_path(str(value)) if option in _FILES else str(value), safe="/:")


_URLS: Mapping[str, Callable[[BackendOptions], str]] = MappingProxyType(
    {
        "memory": _make_memory_url,
        "sqlite": _make_sqlite_url,
        "redis": _make_server_url,
        "postgres": _make_server_url,
    }
)


def _find_section_url(given: BackendOptions, name: str) -> str:
    url = str(given.values["url"])
    if _find_scheme(url) not in FAMILIES[name]:
        schemes = ", ".join(f"{scheme}://" for scheme in FAMILIES[name])
        raise given.make_error("url", f"expected a URL that begins with {schemes}")
    return url


def _format_address(given: BackendOptions, port: int) -> str:
    """Return `host:port` from `addr`, or from a `url` without a scheme; else localhost."""
    _refuse_both(given, "addr", "url")
    key = "url" if "url" in given.values else "addr"
    address = str(given.values.get(key, f"localhost:{port}"))
    try:
        parts = urlsplit(f"//{address}")
        whole = f"{address}" if parts.port is not None else f"{address}:{port}"
    except ValueError:
        parts, whole = urlsplit("//"), ""
    if not parts.hostname or parts.netloc != address or "@" in address or not address.isprintable():
        raise given.make_error(key, "expected host:port, like localhost:6379")
    return whole


def _format_login(given: BackendOptions) -> str:
    user = quote(str(given.values.get("username", "")), safe="")
    password = quote(str(given.values.get("password", "")), safe="")
    if password:
        return f"{user}:{password}@"
    return f"{user}@" if user else ""


def _refuse_both(given: BackendOptions, first: str, second: str) -> None:
    _refuse_all(given, second, (first,))


def _refuse_all(given: BackendOptions, whole: str, others: tuple[str, ...]) -> None:
    for other in others:
        if whole in given.values and other in given.values:
            raise given.make_error(other, f"{whole} sets this already; keep one of them")


def _find_scheme(url: str) -> str:
    scheme, mark, _ = url.partition("://")
    return scheme.lower() if mark and _SCHEME.fullmatch(scheme) else ""


def make_absolute(url: str) -> str:
    """Return a SQLite URL with an absolute path; return other URLs unchanged."""
    scheme, _, rest = url.partition(":///")
    if scheme.lower() != "sqlite" or not rest or rest.startswith(":memory:"):
        return url
    path, mark, query = rest.partition("?")
    return f"{make_sqlite_url(unquote(path))}{mark}{query}"


def make_sqlite_url(path: str) -> str:
    """Return the URL of a file. Characters with a meaning in URLs are escaped."""
    escaped = make_absolute_path(path).translate(
        {ord(character): f"%{ord(character):02X}" for character in "%?#"}
    )
    return f"sqlite:///{escaped}"


def make_absolute_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path; symbolic links are not resolved."""
    try:
        return os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links)
    except OSError as error:
        problem = f"no working directory to find {str(path)!r} in: {error.strerror}"
        raise ConfigurationError(problem) from error
