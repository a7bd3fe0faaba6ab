"""The Lua scripts: one per operation (`lua/operations`), built from the file of the operation and
the shared parts (`lua/shared`) that it uses.

The header of a file has these labels:

- Keys: the keys that this file uses, without the namespace. The key `job` is the local `job_key`. A
  script declares the keys of all its parts.
- Arguments: ARGV. ARGV[1] and ARGV[2] of every script are the times of a test (see `times.lua`), or
  empty.
- Provides (shared parts): the functions for other parts. Reply (operations): what the script
  returns.
- Atomic: what holds if scripts of other clients run before or after this one.
- Cost: time on the server.

A script is atomic: the server runs nothing else meanwhile. But the server does not roll back when a
script fails in the middle. Therefore each script decides first, and then performs writes that
cannot fail. No script takes locks. Scripts with the flag `no-writes` only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

from nimburion.backends.sql_files import LuaFiles

PACKAGE = "nimburion.backends.redis"
SHARED, OPERATIONS = "lua/shared", "lua/operations"
FLAGS_SINCE = (7, 0)
"""The first server version in which scripts declare their behaviour by flags."""


class ScriptSpec(NamedTuple):
    """The parts and flags of the script of one operation."""

    shared: tuple[str, ...] = ()
    flags: str = ""
    """`allow-oom`: the script may run on a full server, because it frees memory or lets jobs
    continue. `no-writes`: the script only reads.
    """


_WRITE_PARTS = (
    "times",
    "record_format",
    "batching",
    "notify",
    "lanes",
    "unique_keys",
    "write_buffer",
)
_SCAN_PARTS = ("times", "record_format", "batching", "lanes", "scan_jobs")

SCRIPT_SPECS = MappingProxyType(
    {
        "open": ScriptSpec(flags="allow-oom"),
        "enqueue": ScriptSpec(
            (
                "times",
                "record_format",
                "batching",
                "notify",
                "lanes",
                "unique_keys",
                "ids",
                "enqueue_jobs",
            )
        ),
        "enqueue_one": ScriptSpec(("times",)),
        "flush": ScriptSpec(flags="allow-oom"),
        "check_enqueue": ScriptSpec(
            ("times", "record_format", "batching", "unique_keys", "ids"), "no-writes"
        ),
        "exchange": ScriptSpec((*_WRITE_PARTS, "settle", "promote_due", "reserve"), "allow-oom"),
        "open_session": ScriptSpec(("times", "notify"), "allow-oom"),
        "heartbeat": ScriptSpec(("times", "record_format", "batching"), "allow-oom"),
        "release": ScriptSpec((*_WRITE_PARTS, "release_jobs"), "allow-oom"),
        "close_session": ScriptSpec((*_WRITE_PARTS, "release_jobs"), "allow-oom"),
        "rescue": ScriptSpec((*_WRITE_PARTS, "release_jobs"), "allow-oom"),
        "promote": ScriptSpec(("times", "batching", "notify", "lanes", "promote_due"), "allow-oom"),
        "cancel": ScriptSpec((*_WRITE_PARTS, "ids", "cancel_job"), "allow-oom"),
        "pause": ScriptSpec(("notify",), "allow-oom"),
        "replay": ScriptSpec((*_WRITE_PARTS, "scan_jobs"), "allow-oom"),
        "delete": ScriptSpec((*_SCAN_PARTS, "delete_jobs"), "allow-oom"),
        "prune": ScriptSpec(
            ("times", "record_format", "batching", "lanes", "delete_jobs"), "allow-oom"
        ),
        "find": ScriptSpec(("ids",), "no-writes"),
        "unfinished": ScriptSpec(("batching",), "no-writes"),
        "get": ScriptSpec((*_SCAN_PARTS, "ids", "job_details"), "no-writes"),
        "list": ScriptSpec((*_SCAN_PARTS, "job_details"), "no-writes"),
        "counts": ScriptSpec(("times", "lanes", "count_jobs"), "no-writes"),
        "queues": ScriptSpec(
            ("times", "record_format", "batching", "lanes", "count_jobs"), "no-writes"
        ),
        "sessions": ScriptSpec(("times", "record_format", "batching"), "no-writes"),
        "put_schedule": ScriptSpec(),
        "pause_schedule": ScriptSpec(flags="allow-oom"),
        "delete_schedule": ScriptSpec(flags="allow-oom"),
        "schedules": ScriptSpec(flags="no-writes"),
        "fire": ScriptSpec((*_WRITE_PARTS, "ids", "cancel_job", "enqueue_jobs")),
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
        files = LuaFiles(PACKAGE, SHARED, OPERATIONS)
        self._scripts = {
            name: build_script(files, name, spec, version) for name, spec in SCRIPT_SPECS.items()
        }

    def __getitem__(self, name: str) -> Script:
        return self._scripts[name]

    def __iter__(self) -> Iterator[Script]:
        return iter(self._scripts.values())


def build_script(files: LuaFiles, name: str, spec: ScriptSpec, version: tuple[int, ...]) -> Script:
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


def collect_keys(files: LuaFiles, used: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys that these files use, without duplicates."""
    named = [key for part in used for key in files.read_header_field(part, "Keys").split()]
    return tuple(dict.fromkeys(named))


def make_prologue(flags: str, keys: tuple[str, ...], version: tuple[int, ...]) -> str:
    """Return the text before the parts: the flags, and one local variable per key."""
    flagged = version >= FLAGS_SINCE
    first = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    oom = _OLD_ALLOW_OOM if flags == "allow-oom" and not flagged else ""
    names = ", ".join(f"{key}_key" for key in keys)
    places = ", ".join(f"KEYS[{n}]" for n in range(1, len(keys) + 1))
    return f"{first if flagged else ''}{oom}local {names} = {places}\n"
