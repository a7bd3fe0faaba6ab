"""Remove secrets from URLs before they are shown.

Every message that quotes a URL, or text that may contain a URL, uses these functions. A well-formed
URL keeps what helps to find a mistake: scheme, user, hosts, path and the options that hold no
secret. Of any other URL only the scheme is shown, because the end of the password is unknown.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_PLAIN_OPTIONS = frozenset(
    {
        *("application_name", "connect_timeout", "connections", "db", "dbname", "durable_enqueue"),
        *("host", "namespace", "pooler", "port", "prefix", "require_durable", "schema"),
        *("sentinel_username", "sslcert", "sslkey", "sslmode", "sslrootcert"),
        *("target_session_attrs", "timeout", "tls_ca", "tls_cert", "tls_key", "tls_verify", "user"),
    }
)
"""Options whose values are shown. A misspelt `password` is not among them."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_USER = re.compile(r"[A-Za-z0-9_.~-]{1,64}")
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]|%2F[A-Za-z0-9_.%-]*)(?::([0-9]{1,5}))?")
_OPTION = re.compile(r"[A-Za-z_]{1,40}")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_ASSIGNMENT = re.compile(
    r"(?i)\b(\w*(?:password|passwd|pwd|secret)\w*\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s,;&)]+)"
)


def redact_url(url: str) -> str:
    """Return the URL with `***` in place of everything that may be a secret.

    >>> redact_url("redis://app:secret@localhost:6379/0?timeout=2&pasword=secret")
    'redis://app:***@localhost:6379/0?timeout=2&pasword=***'
    >>> redact_url("redis://app:sec/ret@localhost")
    'redis://***'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return HIDDEN if re.search(r"[@=%]|:(?![0-9]{1,5}$)", url) else url
    if not _SCHEME.fullmatch(scheme):
        return HIDDEN
    if scheme.lower() == "sqlite" and rest.startswith("/"):  # a path may contain `@` and `:`
        path, mark, query = rest.partition("?")
        return f"{scheme}://{path}{mark}{_redact_query(query)}"
    return f"{scheme}://{_redact_rest(rest, scheme)}"


def redact_urls(text: str) -> str:
    """Return a text, such as a driver's error, with all URLs and assigned passwords redacted.

    >>> redact_urls('invalid DSN "postgresql://app:secret@db/app": password=secret')
    'invalid DSN "postgresql://app:***@db/app": password=***'
    """
    text = _URL_IN_TEXT.sub(lambda found: redact_url(found[0]), text)
    return _ASSIGNMENT.sub(rf"\1{HIDDEN}", text)


def redact_value(text: str) -> str:
    """Return the value of a setting for a message, redacted if it looks like a URL or a part of
    one.
    """
    return redact_url(text) if "://" in text or "@" in text else text


def redact_option_name(name: str) -> str:
    """Return the name of an unknown option, or `***` if it may be part of a password.

    A password that contains `&` is split at that character, as if its rest were an option.
    """
    return name if _OPTION.fullmatch(name) else HIDDEN


def _redact_rest(rest: str, scheme: str) -> str:
    """Redact what follows `://`. The password ends at the only `@`; with several, its end is
    unknown.
    """
    place, mark, query = rest.partition("?")
    authority, slash, path = place.partition("/")
    login, at, hosts = authority.rpartition("@")
    if "@" in login + path + query or "#" in rest or not _are_hosts(hosts):
        return HIDDEN
    shown_login = f"{_redact_login(login, scheme)}@" if at else ""
    return f"{shown_login}{hosts}{slash}{path}{mark}{_redact_query(query)}"


def _are_hosts(text: str) -> bool:
    """Return whether these are hosts with ports. Anything else may be a login without a host."""
    found = [_HOST.fullmatch(host_match) for host_match in text.split(",")]
    return all(host_match is not None and int(host_match[1] or 0) <= 65_535 for host_match in found)


def _redact_login(login: str, scheme: str) -> str:
    """Return the login with the password redacted. The user stays if it cannot be a password.

    A user name is safe to show beside a password, and for PostgreSQL, which accepts no password
    without a user.
    """
    user, colon, password = login.partition(":")
    known = bool(_USER.fullmatch(user)) and (bool(password) or scheme.startswith("postgres"))
    if not colon:
        return user if known else HIDDEN
    return f"{user if known else HIDDEN if user else ''}:{HIDDEN}"


def _redact_query(query: str) -> str:
    return "&".join(_redact_option(pair) for pair in query.split("&")) if query else ""


def _redact_option(pair: str) -> str:
    name, mark, _ = pair.partition("=")
    if not mark or not _OPTION.fullmatch(name):
        return HIDDEN
    return pair if name in _PLAIN_OPTIONS else f"{name}={HIDDEN}"
