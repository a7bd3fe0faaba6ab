"""Map errors of the server, the driver and the network to the errors of nimburion.

A server error begins with a code word such as `OOM` or `READONLY`. Redis 6.2 embeds the code in a
longer message when the error occurs inside a script, and redis-py removes the code of some errors.
`get_error_code` restores it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from redis import exceptions as driver

from nimburion.backends.server.errors import (
    ErrorFactory,
    make_error_factory,
    make_no_reply_error,
    make_not_applied_error,
)
from nimburion.backends.server.url import Endpoint
from nimburion.core.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    ConfigurationError,
    NimburionError,
    Unstorable,
)
from nimburion.core.text.redaction import redact_urls

DRIVER_ERRORS = (driver.RedisError, OSError, EOFError, UnicodeEncodeError, OverflowError)
"""The exceptions that a connection can raise. Catch these, and raise the result of `map_error`."""

_OTHER_SERVER_CODES: Mapping[str, str] = MappingProxyType(
    {
        "READONLY": "it is a replica now and takes no writes",
        "LOADING": "it is starting and still reads its data",
        "MASTERDOWN": "it is a replica that has lost its primary",
        "CLUSTERDOWN": "the cluster is down: not every slot has a live primary",
        "MOVED": "this namespace is on another node of the cluster",
        "ASK": "this namespace is being moved to another node of the cluster",
        "TRYAGAIN": "this namespace is being moved to another node of the cluster",
        "NOREPLICAS": "too few replicas follow it (min-replicas-to-write)",
        "UNBLOCKED": "it became a replica while we waited",
    }
)
"""Codes that mean: write to another server, or later. Nothing was written."""

_CODES_BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (driver.MovedError, "MOVED"),
    (driver.AskError, "ASK"),
    (driver.MasterDownError, "MASTERDOWN"),
    (driver.ClusterDownError, "CLUSTERDOWN"),
    (driver.TryAgainError, "TRYAGAIN"),
    (driver.ClusterCrossSlotError, "CROSSSLOT"),
    (driver.NoScriptError, "NOSCRIPT"),
    (driver.OutOfMemoryError, "OOM"),
    (driver.ReadOnlyError, "READONLY"),
    (driver.BusyLoadingError, "LOADING"),
    (driver.NoPermissionError, "NOPERM"),
    (driver.AuthenticationError, "NOAUTH"),
)
"""The error classes whose code redis-py removes; subclasses come before their base classes."""

_FIRST_WORD = re.compile(r"[A-Z][A-Z0-9_]+(?=[ ]|$)")
_CODE_IN_TEXT = re.compile(r"(?:^|[:\s])-?(OOM|READONLY|MISCONF|WRONGTYPE|NOREPLICAS|NOPERM)\s")
_PERMISSION_TEXT = re.compile(r"ACL failure in script|user executing the script can't")
_QUOTED = re.compile(r"'([^']+)'")
_ARGUMENTS = re.compile(r",? with args beginning with:.*", re.DOTALL)
"""Matches the arguments that an error message repeats. A server or proxy without `AUTH` or `HELLO`
repeats the password there.
"""
_USED_UP = re.compile(r"all [0-9,]+ numbers of \w+ are used")
"""Matches the error of `pack_number` in `lua/formats/strings.lua`."""
_TRAILER = re.compile(r"\s*script: (?:[0-9a-f]{40}, )?on @user_script:\d+\.?$")


def get_error_code(error: BaseException) -> str:
    """Return the server's code word; empty if the error does not come from the server."""
    for kind, code in _CODES_BY_CLASS:
        if isinstance(error, kind):
            return code
    if not isinstance(error, driver.ResponseError):
        return ""
    text = str(error)
    if _PERMISSION_TEXT.search(text):
        return "NOPERM"
    hidden = _CODE_IN_TEXT.search(text) if "script" in text else None
    first = _FIRST_WORD.match(text)
    if hidden:
        return hidden[1]
    return first[0] if first else "ERR"


def needs_other_server(error: BaseException) -> bool:
    """Whether the server that takes writes must be located again. Nothing was written."""
    return get_error_code(error) in _OTHER_SERVER_CODES


def lacks_script(error: BaseException) -> bool:
    """Whether EVALSHA named a script that the server does not have. Nothing was written."""
    return get_error_code(error) == "NOSCRIPT"


def breaks_connection(error: BaseException) -> bool:
    """Whether the connection is unusable: it is closed, or its replies are out of step."""
    return not isinstance(error, driver.ResponseError | driver.DataError | UnicodeEncodeError)


def spoils_session(error: BaseException) -> bool:
    """Whether the error may be a property of this connection, so that a new connection may work.
    Examples: the connection is logged out or subscribed, or the error is unknown.
    """
    code = get_error_code(error)
    if not code or not isinstance(error, Exception):
        return False
    return code == "NOAUTH" or type(map_error(error, "", sent=True)) is BackendError


def parse_redirect(error: BaseException) -> Endpoint | None:
    """Return the target of a `MOVED` error. An empty host means the host of the server that
    replied.
    """
    if get_error_code(error) != "MOVED":
        return None
    host, _, port = str(error).split()[-1].rpartition(":")
    return Endpoint(host.strip("[]"), int(port))


def map_error(error: Exception, where: str, *, sent: bool) -> NimburionError:
    """Return the nimburion error for a driver, network or server error.

    `where` names the backend, as `RedisSettings.describe` does. `sent` means that at least a part
    of the request was sent. Without a reply, it is then unknown whether the request was applied.
    """
    code = get_error_code(error)
    if code:
        return _map_server_error(code, error, where)
    if isinstance(error, UnicodeEncodeError | OverflowError | driver.DataError):
        return Unstorable(f"Redis cannot hold this: {error}")
    return _map_lost_reply(error, where, sent=sent)


# --- errors that the server returned --------------------------------------------------------------


def _map_server_error(code: str, error: Exception, where: str) -> NimburionError:
    text = _ARGUMENTS.sub("", _TRAILER.sub("", redact_urls(str(error))))
    if code in _OTHER_SERVER_CODES:
        return make_not_applied_error(f"{where}: {_OTHER_SERVER_CODES[code]}; nothing was written")
    if code in _ERRORS_BY_CODE:
        return _ERRORS_BY_CODE[code](where, text)
    used_up = _USED_UP.search(text)
    if used_up:
        return BackendFull(
            f"{where}: {used_up[0]}; nothing was written. Numbers are not used again: let the "
            "workers finish what waits, then move to another namespace (?namespace=NAME)"
        )
    return _map_by_message(where, text)


def _map_auth_error(where: str, text: str) -> NimburionError:
    if "without any password configured" in text:
        problem = "the server has no password, but one is set; leave it out, or set it there too"
    elif re.search(r"WRONGPASS|invalid (?:username|password)", text):
        problem = "the server refuses this user or password; correct username and password"
    else:
        problem = "the server asks for a password; set one (redis://USER:PASSWORD@…)"
    return ConfigurationError(f"{where}: {problem}")


def _map_permission_error(where: str, text: str) -> NimburionError:
    command = _QUOTED.search(text)
    if command and "access" not in text:
        grant = f"run {command[1].upper()!r}; grant it (ACL SETUSER … +{command[1]})"
    elif "key" in text:
        grant = "touch the namespace's keys; grant them (ACL SETUSER … ~{NAMESPACE}:*)"
    else:
        grant = f"do this; grant it by ACL SETUSER. Message of the server: {text}"
    return ConfigurationError(f"{where}: this user may not {grant}")


_ERRORS_BY_CODE: Mapping[str, ErrorFactory] = MappingProxyType(
    {
        "OOM": make_error_factory(
            BackendFull,
            "{where}: the server's memory is full (maxmemory); nothing was written. Raise "
            "maxmemory (CONFIG SET maxmemory) or prune what is kept; "
            "workers then continue by themselves",
        ),
        "MISCONF": make_error_factory(
            BackendReadOnly,
            "{where}: the server cannot save to its disk and refuses writes; nothing was written. "
            "See its log, make room on its disk or correct its permissions; workers "
            "then continue by themselves",
        ),
        "WRONGTYPE": make_error_factory(
            BackendCorrupt,
            "{where}: a key of this namespace holds something else; nothing was repaired. The "
            "namespace is used by another program too: choose another one (?namespace=NAME)",
        ),
        "NOAUTH": _map_auth_error,
        "WRONGPASS": _map_auth_error,
        "NOPERM": _map_permission_error,
        "BUSY": make_error_factory(
            make_not_applied_error,
            "{where}: a script that does not end blocks the server; nothing was written. "
            "SCRIPT KILL ends it",
        ),
        "NOSCRIPT": make_error_factory(
            make_not_applied_error,
            "{where}: the server does not have the scripts; nothing was written",
        ),
        "DENIED": make_error_factory(
            ConfigurationError,
            "{where}: the server is in protected mode and answers only its own host; give it a "
            "password and set that here, or set protected-mode no",
        ),
    }
)


def _map_by_message(where: str, text: str) -> NimburionError:
    """Map an error that only its message text identifies."""
    lower = text.lower()
    if "db index is out of range" in lower:
        return ConfigurationError(
            f"{where}: the server has no such db; name one it has (databases)"
        )
    if "cluster support disabled" in lower:
        return ConfigurationError(f"{where}: the server is not a node of a cluster; use redis://")
    if "not allowed in cluster mode" in lower:
        return ConfigurationError(f"{where}: a cluster has only db 0; use redis+cluster://")
    if lower.startswith(("err unknown command", "unknown command")):
        return ConfigurationError(
            f"{where}: the server lacks a command that is needed: {text[:120]}. It must be Redis "
            "6.2 or newer, or Valkey, with no such command renamed"
        )
    if "protocol error" in lower:
        return Unstorable(f"{where}: the server refuses a request of this size: {text[:120]}")
    return BackendError(f"{where}: the server refused: {text[:500]}")


# --- no reply -------------------------------------------------------------------------------------


def _map_lost_reply(error: Exception, where: str, *, sent: bool) -> NimburionError:
    if "max number of clients" in str(error):
        return make_not_applied_error(
            f"{where}: the server has reached its limit of clients (maxclients)"
        )
    if isinstance(error, TimeoutError | driver.TimeoutError):
        problem = "no answer in time"
    elif isinstance(error, driver.InvalidResponse):
        problem = f"the reply is not from Redis ({error})"
    else:
        problem = f"the connection was lost ({str(error) or type(error).__name__})"
    return make_no_reply_error(where, problem, sent=sent)
