"""Lua and Python agree on records and codes, and `record_format.lua` describes them."""

from __future__ import annotations

import re
import struct
from itertools import accumulate

import pytest

from nimburion.backends.redis import record_format
from nimburion.backends.redis.record_format import STATE_CODES
from nimburion.backends.redis.scripts import drop_unused_functions, inline_constants
from nimburion.core.job import State
from tests.house.tree import PACKAGE

FOLDER = PACKAGE / "backends" / "redis" / "lua"
FILES = sorted([*FOLDER.glob("formats/*.lua"), *FOLDER.glob("shared/*.lua")])
LUA = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
FORMATS = (FOLDER / "formats" / "record_format.lua").read_text(encoding="utf-8")
HEADER = FORMATS.partition("\nlocal ")[0]


def read_constants() -> dict[str, int | bytes]:
    """Return the constants of the shared Lua parts whose values are numbers or short strings."""
    found: dict[str, int | bytes] = {}
    for names, values in re.findall(r"^local ([A-Z][A-Z_, ]*) = ([^\n({]+)$", LUA, re.MULTILINE):
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            text = re.fullmatch(r"'(\w)'", value)
            if text or value.isdecimal():
                found[name] = text[1].encode() if text else int(value)
    return found


def read_layout(record: str) -> list[int]:
    """Return the sizes of the fields that every such record has, from the header."""
    line = re.search(rf"^-- {record} +(.*(?:\n--  +\|.*)*)", HEADER, re.MULTILINE)
    assert line is not None
    first = line[1].replace("\n--", "").partition(";")[0]
    fields = re.sub(r"\([^)]*\)", "", first).split("|")
    return [int(field.split()[-1]) for field in fields if re.fullmatch(r"[\w ]+ \d+ *", field)]


def read_lua_formats(function: str) -> list[int]:
    """Return the sizes of the fields that a Lua function reads."""
    body = re.search(rf"function {function}\(.*?\nend", LUA, re.DOTALL)
    assert body is not None
    packed = re.search(r"'>((?:[cIB]\d*)+)'", body[0])
    assert packed is not None
    return [int(size or 1) for _, size in re.findall(r"([cIB])(\d*)", packed[1])]


def test_the_constants_are_equal() -> None:
    python = {name: value for name, value in vars(record_format).items() if name.isupper()}
    lua = read_constants()
    shared = {name for name in python.keys() & lua.keys() if isinstance(python[name], int | bytes)}
    assert len(shared) > 30
    assert {name: lua[name] for name in shared} == {name: python[name] for name in shared}


def test_the_codes_of_states_are_equal() -> None:
    lua = read_constants()
    names = {State.PROCESSING: "LEASED"}
    assert {state: lua[names.get(state, state.name)] for state in STATE_CODES} == {
        state: code.encode() for state, code in STATE_CODES.items()
    }


def test_the_offsets_of_a_job_are_those_of_its_layout() -> None:
    lua = read_constants()
    lane, created, due, flags, priority, digest = accumulate(read_layout("job")[:6])
    assert (lua["JOB_LANE_END"], lua["JOB_CREATED_END"]) == (lane, created)
    assert (lua["JOB_DUE"], lua["JOB_DUE_END"]) == (created + 1, due)
    assert (lua["JOB_FLAGS"], lua["JOB_PRIORITY"]) == (flags, priority)
    assert (lua["JOB_DIGEST"], lua["JOB_DIGEST_END"]) == (priority + 1, digest)
    assert (lua["JOB_ID_LENGTH"], lua["JOB_ID"]) == (digest + 1, digest + 2)
    assert record_format.JOB_HEAD.size == digest + 1
    for name in ("FLAGS", "DIGEST", "DIGEST_END", "ID_LENGTH", "ID"):
        assert lua[f"NEW_JOB_{name}"] == int(lua[f"JOB_{name}"]) - due
    assert record_format.NEW_JOB_HEAD.size == digest + 1 - due


def test_the_offsets_of_sorted_sets_and_of_the_cancel_flag() -> None:
    lua = read_constants()
    lane, rank, due, _ = accumulate(read_layout("ready"))
    assert (lua["READY_LANE_END"], lua["READY_RANK"]) == (lane, rank)
    assert (lua["READY_DUE"], lua["READY_SEQ"]) == (rank + 1, due + 1)
    assert lua["LEASE_CANCEL"] == list(accumulate(read_layout("lease")))[5]


@pytest.mark.parametrize(
    ("record", "function", "size"),
    [
        ("lease", "read_lease", record_format.LEASE.size),
        ("attempt_state", "read_attempt_state", record_format.ATTEMPT_STATE.size),
        ("session_state", "read_session_state", record_format.SESSION_STATE.size),
        ("ready", "read_ready", 21),
        ("scheduled", "read_scheduled", 22),
    ],
)
def test_a_record_has_the_layout_of_the_header(record: str, function: str, size: int) -> None:
    sizes = read_layout(record)
    ends = set(accumulate(read_lua_formats(function)))
    assert sum(sizes) == size == max(ends)
    if record != "lease":  # there a member of ready is four fields
        assert ends <= set(accumulate(sizes))


@pytest.mark.parametrize(
    ("function", "layout"),
    [
        ("read_job_end", record_format.JOB_END),
        ("read_position", record_format.POSITION),
    ],
)
def test_lua_reads_what_python_writes(function: str, layout: struct.Struct) -> None:
    assert sum(read_lua_formats(function)) == layout.size


def test_constants_are_inlined_but_not_in_strings_and_comments() -> None:
    text = "local ONE, TWO = 1, 'b'\n-- ONE\nlocal lane = { [TWO] = ONE, 'TWO', MORE }\n"
    assert inline_constants(text) == "-- ONE\nlocal lane = { ['b'] = 1, 'TWO', MORE }\n"


def test_functions_that_a_script_does_not_call_are_dropped() -> None:
    first = "local function first()\n  return 1\nend\n"
    second = "local function second()\n  return first()\nend\n"
    assert drop_unused_functions(first + second + "return 2\n") == "return 2\n"
    assert drop_unused_functions(first + second + "return second()\n").startswith(first + second)
