"""Map errors of the server, the driver and the network to the errors of nimburion.

A server error carries SQLSTATE, a code of five characters; the first two are its class. Each call
of the backend is one transaction, so an error reply means that nothing was written. The exception
is an error that ends the connection: it can occur between the commit and the reply.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from types import MappingProxyType

import asyncpg

from nimburion.backends.server.errors import (
    ErrorFactory,
    make_error_factory,
    make_no_reply_error,
    make_not_applied_error,
)
from nimburion.core.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    ConfigurationError,
    FormatMismatch,
    NimburionError,
    Unstorable,
)
from nimburion.core.text.redaction import redact_urls

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
"""The exceptions that a connection can raise. Catch these, and raise the result of `map_error`.
They include `TimeoutError` and TLS errors, which are subclasses of `OSError`.
"""

_CONNECTION_ENDED_CODES = frozenset({"57P01", "57P02", "57P04", "40003"})
"""Codes with which the server ends the connection, besides class 08. It is unknown whether the call
was applied.
"""
_LOCK_NOT_AVAILABLE = "55P03"
"""SQLSTATE of a call that would have to wait longer for another transaction."""
_INTERRUPTS = "ProcessInterrupts"
"""The function of the server that reports a `lock_timeout`; a failed NOWAIT has another."""
_ENQUEUE_FUNCTION = re.compile(r"\benqueue_(?:one_|plain_|flow_)?1\(")
"""An enqueue function in the context of an error."""
UNIQUE_VIOLATION = "23505"
"""SQLSTATE of an insert of a row that another transaction has inserted."""
_RETRY_CODES = frozenset({"40001", "40P01"})
_OTHER_SERVER_CODES = frozenset({"25006", "57P03"})

_TRANSIENT_CODES: Mapping[str, str] = MappingProxyType(
    {
        "25006": "it is read-only: a standby, or a demoted primary",
        "57P03": "it is starting, stopping, or a standby that takes no connections yet",
        "57014": "the server cancelled the call (statement_timeout or pg_cancel_backend)",
        _LOCK_NOT_AVAILABLE: "a lock was not acquired in time (lock_timeout)",
        "53300": "its connection limit is reached (max_connections)",
        "53200": "the server is out of memory",
        "25P03": "the transaction was idle for too long",
        "25P04": "the transaction took too long (transaction_timeout)",
        "57P05": "the session was idle for too long (idle_session_timeout)",
        "40001": "the call conflicted with other transactions repeatedly",
        "40P01": "the call conflicted with other transactions repeatedly",
        "58030": "it could not read or write its files; see its log",
    }
)
"""Codes that mean: try later. Nothing was written."""

_OUT_OF_STEP = frozenset({"42P05", "26000", "34000", "24000", "25000", "25001", "25P01", "25P02"})
"""The session and this process disagree about its statements, cursors or transactions. Nothing was
written, and every later call on this connection would fail in the same way.
"""
_KEEPS = frozenset({"NB001", "P0001", *_TRANSIENT_CODES}) - _OTHER_SERVER_CODES
"""Codes that leave the connection usable, besides the codes with an error of their own."""

_TLS_HINT = "; if the server accepts only TLS connections, add sslmode=require to the URL"
_DATA_ERROR_CLASSES = frozenset({"22", "23", "54"})


def get_error_code(error: BaseException) -> str:
    """Return SQLSTATE; empty if the error does not come from the server."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate or "XX000"
    return ""


def is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed at once: after a deadlock or a serialization failure."""
    return get_error_code(error) in _RETRY_CODES


def is_blocked_enqueue(error: BaseException) -> bool:
    """Whether the `lock_timeout` of an enqueue function ended its wait for a transaction.

    An application's trigger and a connection that is being set up can fail with the same code.
    """
    return (
        get_error_code(error) == _LOCK_NOT_AVAILABLE
        and getattr(error, "server_source_function", None) == _INTERRUPTS
        and _ENQUEUE_FUNCTION.search(getattr(error, "context", None) or "") is not None
    )


def breaks_connection(error: BaseException) -> bool:
    """Whether the connection is unusable, or leads to a server that is not suitable.

    Every error that is not known to leave the connection intact counts as breaking it. A new
    connection costs little, and a damaged session stays damaged until it ends.
    """
    code = get_error_code(error)
    if not code:
        return not isinstance(error, asyncpg.DataError)
    kept = code in _KEEPS or code in _ERRORS_BY_CODE or code[:2] in _DATA_ERROR_CLASSES
    return not kept or "FATAL" in _get_severity(error)


def map_error(error: Exception, where: str, *, sent: bool) -> NimburionError:
    """Return the nimburion error for a driver, network or server error.

    `where` names the backend, as `PostgresSettings.describe` does. `sent` means that at least a
    part of the request was sent. Without a reply, it is then unknown whether the request was
    applied.
    """
    code = get_error_code(error)
    if code:
        return map_server_error(code, error, where, sent=sent)
    if isinstance(error, asyncpg.DataError):
        return Unstorable(f"PostgreSQL cannot hold this: {error}")
    return _map_lost_reply(error, where, sent=sent)


def is_cut_short(error: BaseException) -> bool:
    """Whether the connection ended while the driver was reading. The driver's message then
    describes only its own state.
    """
    text = str(error)
    return isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError) and (
        "cannot switch to" in text or "another operation" in text
    )


def _get_severity(error: BaseException) -> str:
    return getattr(error, "severity_en", None) or getattr(error, "severity", None) or ""


# --- errors that the server returned --------------------------------------------------------------


def map_server_error(code: str, error: Exception, where: str, *, sent: bool) -> NimburionError:
    """Map a SQLSTATE code to an error of nimburion, for any driver."""
    text = _format_message(error)
    if code in _ERRORS_BY_CODE:
        return _ERRORS_BY_CODE[code](where, text)
    if code in _CONNECTION_ENDED_CODES or code.startswith("08"):
        return _map_ended_connection(where, text, sent=sent)
    if code in _OUT_OF_STEP:
        return make_not_applied_error(
            f"{where}: the connection was out of step with the server and is replaced; nothing was "
            f"written. The server said: {text[:200]}"
        )
    if code in _TRANSIENT_CODES:
        return make_not_applied_error(
            f"{where}: {_TRANSIENT_CODES[code]}; nothing was written. The server said: {text}"
        )
    if code[:2] in _DATA_ERROR_CLASSES:
        return Unstorable(f"PostgreSQL cannot hold this: {text}")
    return BackendError(f"{where}: the server refused ({code}): {text[:500]}")


def _format_message(error: Exception) -> str:
    """Format the server's message on one line. The detail is omitted, because it may show data of
    the job.
    """
    parts = (
        getattr(error, "message", None) or str(error),
        getattr(error, "hint", None),
    )
    return redact_urls(" ".join(" ".join(part.split()) for part in parts if part))


def _map_ended_connection(where: str, text: str, *, sent: bool) -> NimburionError:
    problem = "the server ended the connection" if sent else "the connection was refused"
    return make_no_reply_error(where, f"{problem} ({text})", sent=sent)


def _map_auth_error(where: str, text: str) -> NimburionError:
    return ConfigurationError(
        f"{where}: the server refused the login ({text}); correct user and password, or its "
        f"pg_hba.conf{_TLS_HINT if 'no encryption' in text else ''}"
    )


_map_missing_objects = make_error_factory(
    FormatMismatch,
    "{where}: the tables of nimburion are missing or have another version ({message}); run: "
    "nimburion migrate up",
)
_map_damage = make_error_factory(
    BackendCorrupt,
    "{where}: the server cannot read its data ({message}); nothing was changed. Stop every process "
    "that uses it and keep a copy of its folder before anything else",
)
_ERRORS_BY_CODE: Mapping[str, ErrorFactory] = MappingProxyType(
    {
        "53100": make_error_factory(
            BackendFull,
            "{where}: the server's disk is full ({message}); nothing was written. Free disk "
            "space; workers then continue",
        ),
        "42501": make_error_factory(
            ConfigurationError,
            "{where}: this role lacks a permission ({message}); as the owner of the schema, "
            "run: nimburion migrate up --grant ROLE, with this role as ROLE",
        ),
        "28P01": _map_auth_error,
        "28000": _map_auth_error,
        "3D000": make_error_factory(
            ConfigurationError,
            "{where}: no such database ({message}); create it (CREATE DATABASE …), or correct the "
            "name",
        ),
        **dict.fromkeys(("42P01", "42883", "3F000", "42703", "42704"), _map_missing_objects),
        **dict.fromkeys(("XX001", "XX002", "58P01"), _map_damage),
    }
)


# --- no reply -------------------------------------------------------------------------------------


def _map_lost_reply(error: Exception, where: str, *, sent: bool) -> NimburionError:
    if isinstance(error, TimeoutError):
        problem = "no answer in time"
    elif isinstance(error, ssl.SSLError):
        problem = f"TLS failed ({error})"
    elif is_cut_short(error):
        problem = "the connection was lost during a reply"
    elif isinstance(error, asyncpg.InterfaceError | OSError):
        problem = f"the connection was lost ({str(error) or type(error).__name__})"
    else:
        problem = f"the reply is not from PostgreSQL ({error})"
    return make_no_reply_error(where, problem, sent=sent)
