"""The Lua scripts, one per operation. Each is built from parts that several scripts share.

The header of each file lists the keys that it uses. A script declares the keys of all its parts and
assigns each to a local variable: key `job` is the local `job_key`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

from nimburion.backends.sql_files import Statements

PACKAGE = "nimburion.backends.redis.lua"
FLAGS_SINCE = (7, 0)
"""The first server version in which scripts declare their behaviour by flags."""


class ScriptSpec(NamedTuple):
    """The parts and flags of the script of one operation."""

    shared: tuple[str, ...] = ()
    flags: str = ""
    """`allow-oom`: the script may run on a full server, because it frees memory or lets jobs
    continue. `no-writes`: the script only reads.
    """


_WRITE_PARTS = ("times", "layout", "lists", "bell", "lanes", "unique", "ledger")
_SCAN_PARTS = ("times", "layout", "lists", "lanes", "seeking")

SCRIPT_SPECS = MappingProxyType(
    {
        "open": ScriptSpec(flags="allow-oom"),
        "enqueue": ScriptSpec(
            ("times", "layout", "lists", "bell", "lanes", "unique", "ids", "storing")
        ),
        "enqueue_one": ScriptSpec(("times",)),
        "flush": ScriptSpec(flags="allow-oom"),
        "look": ScriptSpec(("times", "layout", "lists", "unique", "ids"), "no-writes"),
        "exchange": ScriptSpec((*_WRITE_PARTS, "settling", "promoting", "reserving"), "allow-oom"),
        "open_session": ScriptSpec(("times", "bell"), "allow-oom"),
        "beat": ScriptSpec(("times", "layout", "lists"), "allow-oom"),
        "release": ScriptSpec((*_WRITE_PARTS, "returning"), "allow-oom"),
        "close_session": ScriptSpec((*_WRITE_PARTS, "returning"), "allow-oom"),
        "rescue": ScriptSpec((*_WRITE_PARTS, "returning"), "allow-oom"),
        "promote": ScriptSpec(("times", "lists", "bell", "lanes", "promoting"), "allow-oom"),
        "cancel": ScriptSpec((*_WRITE_PARTS, "ids", "cancelling"), "allow-oom"),
        "pause": ScriptSpec(("bell",), "allow-oom"),
        "replay": ScriptSpec((*_WRITE_PARTS, "seeking"), "allow-oom"),
        "delete": ScriptSpec((*_SCAN_PARTS, "forgetting"), "allow-oom"),
        "prune": ScriptSpec(("times", "layout", "lists", "lanes", "forgetting"), "allow-oom"),
        "find": ScriptSpec(("ids",), "no-writes"),
        "unfinished": ScriptSpec(("lists",), "no-writes"),
        "get": ScriptSpec((*_SCAN_PARTS, "ids", "telling"), "no-writes"),
        "list": ScriptSpec((*_SCAN_PARTS, "telling"), "no-writes"),
        "counts": ScriptSpec(("times", "lanes", "counting"), "no-writes"),
        "queues": ScriptSpec(("times", "layout", "lists", "lanes", "counting"), "no-writes"),
        "sessions": ScriptSpec(("times", "layout", "lists"), "no-writes"),
        "put_schedule": ScriptSpec(),
        "pause_schedule": ScriptSpec(flags="allow-oom"),
        "delete_schedule": ScriptSpec(flags="allow-oom"),
        "schedules": ScriptSpec(flags="no-writes"),
        "fire": ScriptSpec((*_WRITE_PARTS, "ids", "cancelling", "storing")),
    }
)
"""The script of each operation, by name."""

_OLD_ALLOW_OOM = "redis.call('HDEL', KEYS[1], '')\n"
"""A first write for servers without flags. Such a server, when full, rejects a script at its first
write, unless that write frees memory. All later writes are then allowed.
"""


class Script(NamedTuple):
    """The script of one operation, ready to run."""

    name: str
    text: bytes
    sha: bytes
    keys: tuple[str, ...]


class Scripts:
    """All scripts, built for a server of this version."""

    __slots__ = ("_scripts",)

    def __init__(self, version: tuple[int, ...]) -> None:
        files = Statements(PACKAGE)
        self._scripts = {
            name: build_script(files, name, spec, version) for name, spec in SCRIPT_SPECS.items()
        }

    def __getitem__(self, name: str) -> Script:
        return self._scripts[name]

    def __iter__(self) -> Iterator[Script]:
        return iter(self._scripts.values())


def build_script(
    files: Statements, name: str, spec: ScriptSpec, version: tuple[int, ...]
) -> Script:
    """Build a script from its parts."""
    used = (*spec.shared, name)
    keys = collect_keys(files, used)
    text = "".join(
        [
            make_prologue(spec.flags, keys, version),
            *(f"{files[part]}\n" for part in used),
        ]
    ).encode()
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
    return Script(name, text, sha, keys)


def collect_keys(files: Statements, used: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys that these files use, without duplicates."""
    named = [key for part in used for key in files.said(part, "Keys").split()]
    return tuple(dict.fromkeys(named))


def make_prologue(flags: str, keys: tuple[str, ...], version: tuple[int, ...]) -> str:
    """Return the text before the parts: the flags, and one local variable per key."""
    flagged = version >= FLAGS_SINCE
    first = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    oom = _OLD_ALLOW_OOM if flags == "allow-oom" and not flagged else ""
    names = ", ".join(f"{key}_key" for key in keys)
    places = ", ".join(f"KEYS[{n}]" for n in range(1, len(keys) + 1))
    return f"{first if flagged else ''}{oom}local {names} = {places}\n"
