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


RATES = """\
local known = {}
local function get_rate(name)
  return known[name]
end
local function write_rates()
  known = {}
end
"""


def test_the_functions_of_a_deferred_part_are_created_when_one_is_called() -> None:
    operation = "local rate = get_rate('mail')\nwrite_rates()\n"
    texts = {"rate_limits": RATES, "operation": operation}
    first, part, rest = defer_parts(texts, (("rate_limits",),), LuaFiles(PACKAGE, *FOLDERS))
    assert "local deferred = {" in first
    assert "  local function get_rate(name)\n" in part
    assert "return { get_rate = get_rate, write_rates = write_rates }" in part
    assert "write_rates = do_nothing }, deferred)" in part  # as its header says
    assert rest == (
        "local rate = rate_limits_part.get_rate('mail')\nrate_limits_part.write_rates()\n"
    )


def test_groups_of_deferred_parts_are_neighbours() -> None:
    for spec in SCRIPT_SPECS.values():
        for group in spec.deferred:
            first = spec.shared.index(group[0])
            assert spec.shared[first : first + len(group)] == group
