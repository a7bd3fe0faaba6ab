"""What the server, the driver and the network say, in the words of the contract.

A server's error carries a code of five characters, SQLSTATE; its first two are the class. As each
of our calls is one transaction, an error that the server answers with means that nothing was
written, but for those where it ended the connection: that can happen between the commit and the
answer.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import MappingProxyType

import asyncpg

from nimburion.backends.server.errors import Meaning, not_applied, saying, unanswered
from nimburion.core.errors import (
    BackendError,
    ConfigurationError,
    FormatMismatch,
    NimburionError,
    StoreCorrupt,
    StoreFull,
    Unstorable,
)
from nimburion.core.redaction import redact_urls

FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What may come out of a connection: catch these, and raise `meaning_of` them. `TimeoutError` and
errors of TLS are among them, as they are `OSError`s."""

_CUT_OFF = frozenset({"57P01", "57P02", "57P04", "40003"})
"""The server ended the connection, also with class 08: nobody knows whether it was applied."""
_REPEAT = frozenset({"40001", "40P01"})
_MOVED_ON = frozenset({"25006", "57P03"})

_PASSING: Mapping[str, str] = MappingProxyType(
    {
        "25006": "it takes no writes: a standby, or a primary that was demoted",
        "57P03": "it is starting, stopping, or a standby that takes no connections yet",
        "57014": "the call was cancelled there (statement_timeout, or somebody did)",
        "55P03": "a lock was not to be had in time (lock_timeout)",
        "53300": "it has as many connections as it takes (max_connections)",
        "53200": "the server is out of memory",
        "25P03": "the transaction was idle for too long",
        "25P04": "the transaction took too long (transaction_timeout)",
        "57P05": "the session was idle for too long (idle_session_timeout)",
        "40001": "other transactions were in the way again and again",
        "40P01": "other transactions were in the way again and again",
        "58030": "it could not read or write its files; see its log",
    }
)
"""Codes that say: later. Nothing was written."""

_OUT_OF_STEP = frozenset({"42P05", "26000", "34000", "24000", "25000", "25001", "25P01", "25P02"})
"""The session holds a statement, a cursor or a transaction that we know nothing of, or lacks one
that we count on. Nothing was written, and every later call would hear the same."""
_KEEPS = frozenset({"NB001", "P0001", *_PASSING}) - _MOVED_ON
"""Codes after which the connection works as before, as after those that have words of their own."""

_ASKS_FOR_TLS = "; if it lets in only who comes by TLS, add sslmode=require to the URL"
_ABOUT_DATA = frozenset({"22", "23", "54"})


def code_of(error: BaseException) -> str:
    """SQLSTATE; empty for what no server said."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate or "XX000"
    return ""


def asks_to_repeat(error: BaseException) -> bool:
    """Whether the same call may succeed at once: a deadlock or a failed serialization."""
    return code_of(error) in _REPEAT


def breaks_connection(error: BaseException) -> bool:
    """Whether the connection is of no use any more, or leads to a server that is of none.

    So it is after any answer that is not known to leave it as it was: to connect anew costs little,
    and what is wrong with a session stays wrong for as long as the session lives.
    """
    code = code_of(error)
    if not code:
        return not isinstance(error, asyncpg.DataError)
    kept = code in _KEEPS or code in _ANSWERS or code[:2] in _ABOUT_DATA
    return not kept or "FATAL" in _severity(error)


def meaning_of(error: Exception, where: str, *, sent: bool) -> NimburionError:
    """The error of the contract that says the same.

    `where` names the store, as `Address.describe` does. `sent`: at least a part of the request had
    left, so that without an answer nobody knows whether it was applied.
    """
    code = code_of(error)
    if code:
        return answered(code, error, where, sent=sent)
    if isinstance(error, asyncpg.DataError):
        return Unstorable(f"PostgreSQL cannot hold this: {error}")
    return _unanswered(error, where, sent=sent)


def is_cut_short(error: BaseException) -> bool:
    """Whether a connection ended while the driver was reading; its words are then about itself."""
    text = str(error)
    return isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError) and (
        "cannot switch to" in text or "another operation" in text
    )


def _severity(error: BaseException) -> str:
    return getattr(error, "severity_en", None) or getattr(error, "severity", None) or ""


# --- the server answered --------------------------------------------------------------------------


def answered(code: str, error: Exception, where: str, *, sent: bool) -> NimburionError:
    """What a code of the server's means, whichever driver brings it."""
    text = _text_of(error)
    if code in _ANSWERS:
        return _ANSWERS[code](where, text)
    if code in _CUT_OFF or code.startswith("08"):
        return _cut_off(where, text, sent=sent)
    if code in _OUT_OF_STEP:
        return not_applied(
            f"{where}: the connection was out of step with the server and is replaced; nothing was "
            f"written. The server said: {text[:200]}"
        )
    if code in _PASSING:
        return not_applied(
            f"{where}: {_PASSING[code]}; nothing was written. The server said: {text}"
        )
    if code[:2] in _ABOUT_DATA:
        return Unstorable(f"PostgreSQL cannot hold this: {text}")
    return BackendError(f"{where}: the server refused ({code}): {text[:500]}")


def _text_of(error: Exception) -> str:
    """What the server said, in one line. Without its detail, which may show what the job holds."""
    parts = (getattr(error, "message", None) or str(error), getattr(error, "hint", None))
    return redact_urls(" ".join(" ".join(part.split()) for part in parts if part))


def _cut_off(where: str, text: str, *, sent: bool) -> NimburionError:
    problem = "the server ended the connection" if sent else "the connection was refused"
    return unanswered(where, f"{problem} ({text})", sent=sent)


def _not_let_in(where: str, text: str) -> NimburionError:
    return ConfigurationError(
        f"{where}: the server does not let us in ({text}); correct user and password, or its "
        f"pg_hba.conf{_ASKS_FOR_TLS if 'no encryption' in text else ''}"
    )


_lacking = saying(
    FormatMismatch,
    "{where}: what nimburion keeps there is missing or of another version ({said}); run: nimburion "
    "migrate up",
)
_damaged = saying(
    StoreCorrupt,
    "{where}: the server cannot read its data ({said}); nothing was changed. Stop every process "
    "that uses it and keep a copy of its folder before anything else",
)
_ANSWERS: Mapping[str, Meaning] = MappingProxyType(
    {
        "53100": saying(
            StoreFull,
            "{where}: the server's disk is full ({said}); nothing was written. Make room, and it "
            "goes on by itself",
        ),
        "42501": saying(
            ConfigurationError,
            "{where}: this role may not do that ({said}); let the owner of the schema run: "
            "nimburion migrate up --grant ROLE, for this one",
        ),
        "28P01": _not_let_in,
        "28000": _not_let_in,
        "3D000": saying(
            ConfigurationError,
            "{where}: no such database ({said}); create it (CREATE DATABASE …), or correct the "
            "name",
        ),
        **dict.fromkeys(("42P01", "42883", "3F000", "42703", "42704"), _lacking),
        **dict.fromkeys(("XX001", "XX002", "58P01"), _damaged),
    }
)


# --- nobody answered ------------------------------------------------------------------------------


def _unanswered(error: Exception, where: str, *, sent: bool) -> NimburionError:
    if isinstance(error, TimeoutError):
        problem = "no answer in time"
    elif isinstance(error, ssl.SSLError):
        problem = f"TLS failed ({error})"
    elif is_cut_short(error):
        problem = "the connection was lost in the middle of an answer"
    elif isinstance(error, asyncpg.InterfaceError | OSError):
        problem = f"the connection was lost ({str(error) or type(error).__name__})"
    else:
        problem = f"what came back is no answer of PostgreSQL ({error})"
    return unanswered(where, problem, sent=sent)
