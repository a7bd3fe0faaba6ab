"""The Lua scripts: one per operation, built from its file and the parts that it
uses.

- `lua/scripts`: one file per operation, in folders that are named after the protocols of
  `core/backend.py`.
- `lua/formats`: parts that read and write records, names and numbers.
- `lua/planning`: parts that decide what an exchange leases and parks, laid out as
  `nimburion.backends.planning`. A test compares the two.
- `lua/shared`: parts that do one step of an operation.

The header of a file has these labels:

- Keys: the keys that this file uses, without the namespace. The key `job` is the local `job_key`. A
  script declares the keys of all its parts.
- Arguments: ARGV. `number 8` is a value of 8 bytes (see `record_format.lua`). In every
  script, ARGV[1] and ARGV[2] are the times of a test (see `times.lua`), or empty.
- Provides (shared parts): the functions for other parts. Reply (scripts): what the script
  returns.
- Idle: functions that do nothing before another function of the part was called (see
  `defer_parts`).
- Atomic: what holds if scripts of other clients run before or after this one.
- Cost: time on the server.

A script is atomic: the server runs nothing else meanwhile. But the server does not roll back when a
script fails in the middle. Therefore each script decides first, and then performs writes that
cannot fail. No script takes locks. Scripts with the flag `no-writes` only read.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from textwrap import indent
from types import MappingProxyType
from typing import NamedTuple

from nimburion.backends.sql_files import LuaFiles

PACKAGE = "nimburion.backends.redis"
FOLDERS = (
    "lua/formats",
    "lua/planning",
    "lua/shared",
    "lua/scripts/producing",
    "lua/scripts/consuming",
    "lua/scripts/maintaining",
    "lua/scripts/reads",
    "lua/scripts/scheduling",
)
"""The folders of the Lua files, in PACKAGE."""
FLAGS_SINCE = (7, 0)
"""The first server version in which scripts declare their behaviour by flags."""


class ScriptSpec(NamedTuple):
    """The parts and flags of the script of one operation."""

    shared: tuple[str, ...] = ()
    """The parts, each after those that it uses."""
    flags: str = ""
    """`allow-oom`: the script may run on a full server, because it frees memory or lets jobs
    continue. `no-writes`: the script only reads.
    """
    deferred: tuple[tuple[str, ...], ...] = ()
    """Groups of parts that most calls do not need (see `defer_parts`). The parts of a group are
    neighbours in `shared`.
    """


_RECORD_PARTS = ("times", "constants", "strings", "record_format", "session_format", "batching")
_NOTIFY_PARTS = ("idle_workers", "notify")
_ENQUEUE_PARTS = (*_RECORD_PARTS, *_NOTIFY_PARTS, "lane_counts", "unique_keys")
_USE_PARTS = ("admission", "fairness", "parked_jobs")
_KEY_PARTS = ("heap", *_USE_PARTS)
_LIMIT_PARTS = (*_RECORD_PARTS, *_NOTIFY_PARTS, "lane_counts", *_KEY_PARTS, "limit_changes")
_WRITE_PARTS = (*_ENQUEUE_PARTS, *_KEY_PARTS, "write_buffer")
_SCAN_PARTS = (*_RECORD_PARTS, "lane_counts", "scan_jobs")
_DETAIL_PARTS = ("session_names", "job_details")
_CHANGE_PARTS = ("session_names", "job_changes")
_KEY_HOLDER_PARTS = ("ids", "key_holders")
_NEW_JOB_PARTS = (*_KEY_HOLDER_PARTS, "enqueue_jobs")
_MEMBER_PARTS = ("job_ids", "flow_names", "flow_members")
_RUN_PARTS = (*_MEMBER_PARTS, "run_data")
_FLOW_GROUP = (*_KEY_HOLDER_PARTS, *_RUN_PARTS, "cancel_waiting", "flow_data", "flows")
_FLOW_PARTS = (*_FLOW_GROUP, "promote_due", "resolve_flows")
_SETTLING = ("allow-oom", (_FLOW_GROUP,))
"""The flags and the deferred parts of scripts that end jobs, of which few are members of flows."""
_EXCHANGE_GROUPS = (
    *(("record_format",), _NOTIFY_PARTS, ("unique_keys",), _USE_PARTS),
    *(("write_buffer",), _FLOW_GROUP, ("run_steps",), ("settle",)),
    *(("pauses", "lanes", "source", "reserve"), ("small_runs",)),
    *(("lease_jobs",), ("repeat_leases",)),
)


SCRIPT_SPECS = MappingProxyType(
    {
        "open": ScriptSpec(flags="allow-oom"),
        "enqueue": ScriptSpec((*_ENQUEUE_PARTS, *_KEY_PARTS, *_NEW_JOB_PARTS)),
        "enqueue_flow": ScriptSpec((*_WRITE_PARTS, *_FLOW_PARTS, "enqueue_jobs")),
        "enqueue_one": ScriptSpec(("times", "constants", "idle_workers")),
        "flush": ScriptSpec(flags="allow-oom"),
        "check_enqueue": ScriptSpec(
            (*_RECORD_PARTS, "unique_keys", *_KEY_HOLDER_PARTS), "no-writes"
        ),
        "exchange": ScriptSpec(
            (
                *(*_WRITE_PARTS, *_FLOW_PARTS, "run_steps", "settle"),
                *("read_lanes", "pauses", "lanes", "source", "reserve"),
                *("small_runs", "lease_jobs", "repeat_leases", "reserve_jobs"),
            ),
            "allow-oom",
            _EXCHANGE_GROUPS,
        ),
        "wake_workers": ScriptSpec(("times", "idle_workers"), "allow-oom"),
        "open_session": ScriptSpec(_LIMIT_PARTS, "allow-oom"),
        "heartbeat": ScriptSpec((*_RECORD_PARTS, "pauses"), "allow-oom"),
        "put_statistics": ScriptSpec(("times",)),
        "merge_statistics": ScriptSpec(("times", "batching"), "allow-oom"),
        "release": ScriptSpec((*_WRITE_PARTS, *_FLOW_PARTS, "release_jobs"), *_SETTLING),
        "close_session": ScriptSpec((*_WRITE_PARTS, *_FLOW_PARTS, "release_jobs"), *_SETTLING),
        "rescue": ScriptSpec(
            (*_WRITE_PARTS, *_FLOW_PARTS, "release_jobs", "session_names"), *_SETTLING
        ),
        "promote": ScriptSpec((*_WRITE_PARTS, *_FLOW_PARTS), *_SETTLING),
        "continue_flows": ScriptSpec((*_WRITE_PARTS, *_FLOW_PARTS), "allow-oom"),
        "cancel": ScriptSpec((*_WRITE_PARTS, *_FLOW_PARTS, *_CHANGE_PARTS), "allow-oom"),
        "send_signals": ScriptSpec((*_WRITE_PARTS, *_FLOW_PARTS)),
        "pause_queue": ScriptSpec(("times", *_NOTIFY_PARTS, "pauses"), "allow-oom"),
        "change_limit": ScriptSpec(_LIMIT_PARTS, "allow-oom"),
        "send_command": ScriptSpec((*_RECORD_PARTS, *_NOTIFY_PARTS), "allow-oom"),
        "change_jobs": ScriptSpec(
            (
                *(*_WRITE_PARTS, *_FLOW_PARTS),
                *_CHANGE_PARTS,
                *("delete_jobs", "versioned_records"),
            ),
            "allow-oom",
        ),
        "put_record": ScriptSpec(("times", "batching", "versioned_records"), "allow-oom"),
        "delete_record": ScriptSpec(("versioned_records",), "allow-oom"),
        "prune": ScriptSpec(
            (
                *(*_RECORD_PARTS, "lane_counts", *_RUN_PARTS, "delete_jobs"),
                *("pauses", "heap", "fairness"),
            ),
            "allow-oom",
        ),
        "set_tenant_weight": ScriptSpec(("times",), "allow-oom"),
        "find_jobs": ScriptSpec(("ids",), "no-writes"),
        "find_unfinished": ScriptSpec(_RECORD_PARTS, "no-writes"),
        "get_job": ScriptSpec((*_SCAN_PARTS, "ids", *_DETAIL_PARTS), "no-writes"),
        "read_run": ScriptSpec(("ids",), "no-writes"),
        "list_jobs": ScriptSpec((*_SCAN_PARTS, *_DETAIL_PARTS), "no-writes"),
        "list_dead_letters": ScriptSpec(_SCAN_PARTS, "no-writes"),
        "explain_job": ScriptSpec(
            (
                *_SCAN_PARTS,
                *("unique_keys", *_KEY_HOLDER_PARTS, *_MEMBER_PARTS, "pauses"),
                *_DETAIL_PARTS,
                *("limit_holders", "read_sessions"),
                *(*_NOTIFY_PARTS, *_KEY_PARTS),
            ),
            "no-writes",
        ),
        "count_jobs": ScriptSpec((*_RECORD_PARTS, "lane_counts", "count_by_lane"), "no-writes"),
        "list_queues": ScriptSpec(
            (*_RECORD_PARTS, "lane_counts", "count_by_lane", "pauses"), "no-writes"
        ),
        "get_flow": ScriptSpec(("strings", "batching", "flow_names"), "no-writes"),
        "list_flows": ScriptSpec(("strings", "batching", "flow_names"), "no-writes"),
        "list_sessions": ScriptSpec((*_RECORD_PARTS, "read_sessions"), "no-writes"),
        "list_limits": ScriptSpec(("times", "batching"), "no-writes"),
        "list_limit_holders": ScriptSpec(
            (*_RECORD_PARTS, "lane_counts", "session_names", "limit_holders"), "no-writes"
        ),
        "list_tenants": ScriptSpec((*_RECORD_PARTS, "heap", "fairness"), "no-writes"),
        "list_statistics": ScriptSpec(("times", "batching"), "no-writes"),
        "get_record": ScriptSpec(("versioned_records",), "no-writes"),
        "list_records": ScriptSpec(("times", "batching"), "no-writes"),
        "fire": ScriptSpec(
            (
                *(*_WRITE_PARTS, *_FLOW_PARTS, *_CHANGE_PARTS),
                *("enqueue_jobs", "versioned_records"),
            ),
        ),
    }
)
"""The script of each operation, by name."""

_OLD_ALLOW_OOM = "redis.call('HDEL', KEYS[1] .. ':', '')\n"
"""A first write for servers without flags, to a key that does not exist: the first key of a script
may have any type. Such a server, when full, rejects a script at its first write, unless that write
frees memory. All later writes are then allowed.
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
        self._scripts = build_scripts(flagged=version >= FLAGS_SINCE)

    def __getitem__(self, name: str) -> Script:
        return self._scripts[name]

    def __iter__(self) -> Iterator[Script]:
        return iter(self._scripts.values())


@cache
def build_scripts(*, flagged: bool) -> MappingProxyType[str, Script]:
    """Build all scripts, once per process. `flagged`: for a server whose scripts have flags."""
    files = LuaFiles(PACKAGE, *FOLDERS)
    return MappingProxyType(
        {
            name: build_script(files, name, spec, flagged=flagged)
            for name, spec in SCRIPT_SPECS.items()
        }
    )


def build_script(files: LuaFiles, name: str, spec: ScriptSpec, *, flagged: bool) -> Script:
    """Build a script from its parts."""
    used = (*spec.shared, name)
    keys = collect_keys(files, used)
    body = inline_constants(_PART_END.join(f"{files[part]}\n" for part in used))
    body, bound = inline_keys(drop_unused_functions(body), keys)
    texts = dict(zip(used, body.split(_PART_END), strict=True))
    body = hide_private_names(defer_parts(texts, spec.deferred, files))
    text = (make_prologue(spec.flags, bound, flagged=flagged) + body).encode()
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
    return Script(name, text, sha, keys)


_CONSTANTS = re.compile(
    r"^local ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*) = ((?:\d+|'[^',]*')(?:, (?:\d+|'[^',]*'))*)\n",
    re.MULTILINE,
)
_TOKEN = re.compile(r"--[^\n]*|'(?:\\.|[^'\\])*'|\b[A-Z][A-Z0-9_]*\b")


def inline_constants(text: str) -> str:
    """Replace each constant by its value. A constant is a local in capitals that is a number or a
    string.

    A server runs the whole script at each call, and binds each local that a function uses. With
    more than a hundred constants, this would take longer than the work of a small exchange.
    """
    constants: dict[str, str] = {}
    for found in _CONSTANTS.finditer(text):
        constants.update(zip(found[1].split(", "), found[2].split(", "), strict=True))
    return _TOKEN.sub(lambda match: constants.get(match[0], match[0]), _CONSTANTS.sub("", text))


_FUNCTION = re.compile(r"^local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"\w+")
_KEY_NAME = re.compile(r"\b\w+_key\b")


def drop_unused_functions(text: str) -> str:
    """Remove the functions of shared parts that this script does not call. A server creates all
    functions of a script at each call.
    """
    kept = ""
    while kept != text:
        text, uses = kept or text, Counter(_WORD.findall(kept or text))
        unused = [found[0] for found in _FUNCTION.finditer(text) if uses[found[1]] == 1]
        kept = text
        for function in unused:
            kept = kept.replace(function, "")
    return text


def collect_keys(files: LuaFiles, used: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys that these files use, without duplicates."""
    named = [key for part in used for key in files.read_header_field(part, "Keys").split()]
    return tuple(dict.fromkeys(named))


_PART_END = "-- end of a part\n"
_DEFER = """\
local function do_nothing() end
local deferred = { __index = function(part, name)
  setmetatable(part, nil)
  for created_name, created in pairs(part.create()) do
    part[created_name] = created
  end
  return part[name]
end }
"""


def defer_parts(
    texts: dict[str, str], groups: tuple[tuple[str, ...], ...], files: LuaFiles
) -> list[str]:
    """Return the texts of the parts in order, each group of deferred parts as one text.

    A server creates all functions of a script at each call. For an exchange this would take longer
    than its work. The functions of a deferred group are fields of a table, and are created when the
    script first calls one of them. Until then, the functions that the label `Idle` in the header of
    a part names do nothing.
    """
    if not groups:
        return list(texts.values())
    result = dict(texts)
    for group in groups:
        body = "".join(result[part] for part in group)
        idle = [name for part in group for name in files.read_header_field(part, "Idle").split()]
        others = "".join(text for part, text in result.items() if part not in group)
        names = [found[1] for found in _FUNCTION.finditer(body) if f"{found[1]}(" in others]
        table = f"{group[0]}_part"
        calls = re.compile(rf"(?<![\w.])(?={'|'.join(rf'{name}[(]' for name in names)})")
        result = {
            part: text if part in group else calls.sub(f"{table}.", text)
            for part, text in result.items()
            if part == group[0] or part not in group
        }
        fields = "".join(f", {name} = do_nothing" for name in idle)
        created = ", ".join(f"{name} = {name}" for name in names)
        result[group[0]] = (
            f"local {table} = setmetatable({{ create = function()\n{indent(body, '  ')}"
            f"  return {{ {created} }}\nend{fields} }}, deferred)\n"
        )
    return [_DEFER, *result.values()]


_DECLARATION = re.compile(r"^local (?:function (\w+)|(\w+(?:, \w+)*)( =)?)", re.MULTILINE)


def hide_private_names(parts: list[str]) -> str:
    """Return one text in which the top-level names of a part that no later part uses are in a block
    of their own. The last part is the operation, which stays as it is.

    Lua allows 200 locals at the same time.
    """
    text = parts[-1]
    used = set(_WORD.findall(text))
    for part in reversed(parts[:-1]):
        declared = [(m[1] or m[2]).split(", ") for m in _DECLARATION.finditer(part)]
        exported = {name for names in declared if not used.isdisjoint(names) for name in names}
        used |= set(_WORD.findall(part))
        block = _DECLARATION.sub(partial(_export, exported=exported), part)
        first = f"local {', '.join(sorted(exported))}\n" if exported else ""
        text = f"{first}do\n{block}end\n{text}"
    return text


def _export(declaration: re.Match[str], exported: set[str]) -> str:
    """Return a declaration as an assignment, if its names are declared outside of its block."""
    function, names, has_value = declaration.groups()
    if (function or names.split(", ")[0]) not in exported:
        return declaration[0]
    if function:
        return f"function {function}"
    return f"{names} =" if has_value else ""


_FEW_USES = 3


def inline_keys(body: str, keys: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Write out each key that a script names at most a few times, such as `KEYS[3]` for `job_key`.
    Return the new text, and the expressions of the other keys by their locals.

    Lua allows 200 locals. The script of the exchange would have more with one for each key.
    """
    uses = Counter(_WORD.findall(body))
    places = {f"{key}_key": f"KEYS[{n}]" for n, key in enumerate(keys, start=1)}
    bound = {name: place for name, place in places.items() if uses[name] > _FEW_USES}
    inlined = places.keys() - bound.keys()
    text = _KEY_NAME.sub(lambda match: places[match[0]] if match[0] in inlined else match[0], body)
    return text, bound


def make_prologue(flags: str, bound: dict[str, str], *, flagged: bool) -> str:
    """Return the text before the parts: the flags, and the locals of keys."""
    first = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    oom = _OLD_ALLOW_OOM if flags == "allow-oom" and not flagged else ""
    locals_ = f"local {', '.join(bound)} = {', '.join(bound.values())}\n" if bound else ""
    return f"{first if flagged else ''}{oom}{locals_}"
