"""The Lua scripts: one an operation, put together from parts that several share.

Each file says in its header which keys it uses; a script declares those of all its parts, and has
each as a local of its name: `job` is `job_key`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

from nimburion.backends.sql_files import Statements

PACKAGE = "nimburion.backends.redis.lua"
FLAGGED = (7, 0)
"""From this version of the server on, a script says by flags what it may do."""


class Recipe(NamedTuple):
    """What an operation's script is made of."""

    parts: tuple[str, ...] = ()
    flags: str = ""
    """`allow-oom`: may run on a full server, as it frees more than it takes, or lets jobs go on.
    `no-writes`: only reads."""


_LEDGER = ("times", "layout", "lists", "bell", "lanes", "unique", "ledger")
_SEEKING = ("times", "layout", "lists", "lanes", "seeking")

RECIPES = MappingProxyType(
    {
        "open": Recipe(flags="allow-oom"),
        "enqueue": Recipe(
            ("times", "layout", "lists", "bell", "lanes", "unique", "ids", "storing")
        ),
        "enqueue_one": Recipe(("times",)),
        "flush": Recipe(flags="allow-oom"),
        "look": Recipe(("times", "layout", "lists", "unique", "ids"), "no-writes"),
        "exchange": Recipe((*_LEDGER, "settling", "promoting", "reserving"), "allow-oom"),
        "open_session": Recipe(("times", "bell"), "allow-oom"),
        "beat": Recipe(("times", "layout", "lists"), "allow-oom"),
        "release": Recipe((*_LEDGER, "returning"), "allow-oom"),
        "close_session": Recipe((*_LEDGER, "returning"), "allow-oom"),
        "rescue": Recipe((*_LEDGER, "returning"), "allow-oom"),
        "promote": Recipe(("times", "lists", "bell", "lanes", "promoting"), "allow-oom"),
        "cancel": Recipe((*_LEDGER, "ids", "cancelling"), "allow-oom"),
        "pause": Recipe(("bell",), "allow-oom"),
        "replay": Recipe((*_LEDGER, "seeking"), "allow-oom"),
        "delete": Recipe((*_SEEKING, "forgetting"), "allow-oom"),
        "prune": Recipe(("times", "layout", "lists", "lanes", "forgetting"), "allow-oom"),
        "find": Recipe(("ids",), "no-writes"),
        "unfinished": Recipe(("lists",), "no-writes"),
        "get": Recipe((*_SEEKING, "ids", "telling"), "no-writes"),
        "list": Recipe((*_SEEKING, "telling"), "no-writes"),
        "counts": Recipe(("times", "lanes", "counting"), "no-writes"),
        "queues": Recipe(("times", "layout", "lists", "lanes", "counting"), "no-writes"),
        "sessions": Recipe(("times", "layout", "lists"), "no-writes"),
        "put_schedule": Recipe(),
        "pause_schedule": Recipe(flags="allow-oom"),
        "delete_schedule": Recipe(flags="allow-oom"),
        "schedules": Recipe(flags="no-writes"),
        "fire": Recipe((*_LEDGER, "ids", "cancelling", "storing")),
    }
)
"""By operation."""

_OLD_ALLOW_OOM = "redis.call('HDEL', KEYS[1], '')\n"
"""Before flags a full server refuses a script at its first write, unless that one frees; then all
others pass."""


class Script(NamedTuple):
    """One operation, ready to be called."""

    name: str
    text: bytes
    sha: bytes
    keys: tuple[str, ...]


class Scripts:
    """All scripts, as a server of this version takes them."""

    __slots__ = ("_scripts",)

    def __init__(self, version: tuple[int, ...]) -> None:
        files = Statements(PACKAGE)
        self._scripts = {
            name: script_of(files, name, recipe, version) for name, recipe in RECIPES.items()
        }

    def __getitem__(self, name: str) -> Script:
        return self._scripts[name]

    def __iter__(self) -> Iterator[Script]:
        return iter(self._scripts.values())


def script_of(files: Statements, name: str, recipe: Recipe, version: tuple[int, ...]) -> Script:
    """Put a script together."""
    used = (*recipe.parts, name)
    keys = keys_of(files, used)
    text = "".join(
        [
            beginning(recipe.flags, keys, version),
            *(f"{files[part]}\n" for part in used),
        ]
    ).encode()
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
    return Script(name, text, sha, keys)


def keys_of(files: Statements, used: tuple[str, ...]) -> tuple[str, ...]:
    """The keys that these files use, each once."""
    named = [key for part in used for key in files.said(part, "Keys").split()]
    return tuple(dict.fromkeys(named))


def beginning(flags: str, keys: tuple[str, ...], version: tuple[int, ...]) -> str:
    """What stands before the parts: flags, and a local for each key."""
    flagged = version >= FLAGGED
    first = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    oom = _OLD_ALLOW_OOM if flags == "allow-oom" and not flagged else ""
    names = ", ".join(f"{key}_key" for key in keys)
    places = ", ".join(f"KEYS[{n}]" for n in range(1, len(keys) + 1))
    return f"{first if flagged else ''}{oom}local {names} = {places}\n"
