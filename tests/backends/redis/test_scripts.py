"""How the text of a script is built from its parts."""

from __future__ import annotations

from nimburion.backends.redis.scripts import (
    FOLDERS,
    PACKAGE,
    SCRIPT_SPECS,
    defer_parts,
    hide_private_names,
    inline_keys,
)
from nimburion.backends.sql_files import LuaFiles

ADD = """
local total, step = 0, 1
local seen
local function double(number)
  return 2 * number
end

local function add(number)
  total = total + double(number) * step
end
"""
OPERATION = "local name = ARGV[1]\nadd(1)\nreturn total\n"


def test_names_that_no_later_part_uses_are_in_a_block() -> None:
    text = hide_private_names([ADD, OPERATION])
    assert text == (
        "local add, step, total\ndo\n"
        + ADD.replace("local total", "total").replace("local function add", "function add")
        + f"end\n{OPERATION}"
    )


def test_a_declared_name_without_a_value_is_not_assigned() -> None:
    text = hide_private_names(["local now, later\nnow = 1\n", "return now\n"])
    assert text == "local later, now\ndo\n\nnow = 1\nend\nreturn now\n"


def test_only_keys_that_are_used_often_have_a_local() -> None:
    often = "use(often_key)\n" * 9
    text, bound = inline_keys(f"{often}use(once_key, other_key)\n", ("once", "often"))
    assert bound == {"often_key": "KEYS[2]"}
    assert text == f"{often}use(KEYS[1], other_key)\n"


PARKED = """\
local parked = {}
local function park(member)
  parked[member] = true
end
local function write_parked()
  parked = {}
end
"""


def test_the_functions_of_a_deferred_part_are_created_when_one_is_called() -> None:
    operation = "park('job')\nwrite_parked()\n"
    texts = {"parked_jobs": PARKED, "operation": operation}
    first, part, rest = defer_parts(texts, (("parked_jobs",),), LuaFiles(PACKAGE, *FOLDERS))
    assert "local deferred = {" in first
    assert "  local function park(member)\n" in part
    assert "return { park = park, write_parked = write_parked }" in part
    assert "write_parked = do_nothing }, deferred)" in part  # as its header says
    assert rest == "parked_jobs_part.park('job')\nparked_jobs_part.write_parked()\n"


def test_groups_of_deferred_parts_are_neighbours() -> None:
    for spec in SCRIPT_SPECS.values():
        for group in spec.deferred:
            first = spec.shared.index(group[0])
            assert spec.shared[first : first + len(group)] == group
