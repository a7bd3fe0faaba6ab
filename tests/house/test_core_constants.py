"""SQL and Lua repeat numbers of `core`. Each of them is compared here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest

from nimburion.core import backend, exchange, fairness, flows, job, lease, limits, runs
from nimburion.core.diagnosis import explanations
from nimburion.core.rate_limits import CLOCK_TOLERANCE, MAX_AHEAD
from nimburion.core.timing.clock import to_micros
from tests.house.tree import PACKAGE

BACKENDS = PACKAGE / "backends"
CORE = MappingProxyType(
    {
        "CLOCK_TOLERANCE": CLOCK_TOLERANCE,
        "DELIVERY_OVERHEAD": exchange.DELIVERY_OVERHEAD,
        "FIRST_CHARGE": fairness.FIRST_CHARGE,
        "MAX_AHEAD": MAX_AHEAD,
        "MAX_CHARGE": fairness.MAX_CHARGE,
        "MAX_CLOSED": flows.MAX_CLOSED,
        "MAX_DELIVERED_RUN": runs.MAX_DELIVERED_RUN,
        "MAX_DOUBLINGS": fairness.MAX_DOUBLINGS,
        "MAX_HOLDERS": backend.MAX_HOLDERS,
        "MAX_PARKED": limits.MAX_PARKED,
        "MAX_PROMOTED": exchange.MAX_PROMOTED,
        "MAX_PRIORITY": job.MAX_PRIORITY,
        "MAX_RESOLVED": flows.MAX_RESOLVED,
        "MAX_RETURNED": limits.MAX_RETURNED,
        "MAX_UNMET": explanations.MAX_UNMET,
        "MAX_UNREAD_SIGNALS": runs.MAX_UNREAD_SIGNALS,
        "MAX_WAITING_COUNTED": fairness.MAX_WAITING_COUNTED,
        "MAX_WAITING_LANES": exchange.MAX_WAITING_LANES,
        "MIN_CHARGE": fairness.MIN_CHARGE,
        "REPEAT_WINDOW": to_micros(job.REPEAT_WINDOW),
        "SUSPECT_AFTER": lease.SUSPECT_AFTER,
        "WEIGHT_UNITS": fairness.WEIGHT_UNITS,
    }
)
"""The constants of `core` that SQL or Lua needs: whole numbers, times in microseconds."""

IN_LUA = CORE.keys() - {"MAX_PROMOTED", "SUSPECT_AFTER"}
"""Lua has these as locals of the same name. `rescue.lua` gets one of the others as an argument, and
an exchange on Redis promotes fewer jobs."""

IN_SQL = MappingProxyType(
    {
        "sqlite": (
            "{FIRST_CHARGE} << min(coalesce(s.unmeasured, 0), {MAX_DOUBLINGS})), {MIN_CHARGE} )",
            "), {MAX_CHARGE}) * {WEIGHT_UNITS} / coalesce((",
            "WHERE n.id = NEW.lane >> 20 ), {WEIGHT_UNITS})",
            "WHERE n.id = e.value ), {WEIGHT_UNITS}) ELSE {WEIGHT_UNITS} END",
            "WHERE w.tenant = n.name), {WEIGHT_UNITS})",
        ),
        "postgres": (
            "LEAST(GREATEST(p_run_time, {MIN_CHARGE}), {MAX_CHARGE}) * {WEIGHT_UNITS} / p_units",
            "CAST({FIRST_CHARGE} AS int8) << CAST(LEAST(p_unmeasured, {MAX_DOUBLINGS}) AS int4)",
            "GREATEST(p_now - l.leased_at, 0), {MAX_CHARGE}) END AS run_time",
            "WHERE w.tenant = place.tenant), {WEIGHT_UNITS})",
            "WHERE w.tenant = s.tenant), {WEIGHT_UNITS})",
            ") END, {WEIGHT_UNITS}) AS units",
            "a.id = n.share ) END, {WEIGHT_UNITS}))) FROM",
            "u.units = {WEIGHT_UNITS};",
            "u.units <> {WEIGHT_UNITS} ORDER",
            "find_turn_1(g.id, {MAX_WAITING_COUNTED})",
            "SELECT CAST({DELIVERY_OVERHEAD} + octet_length(p_payload)",
            "l.lost >= {SUSPECT_AFTER} AND s.held_several",
            "coalesce(p_monotonic, now) + s.ttl + {CLOCK_TOLERANCE}",
            "k.used_at > p_now + {CLOCK_TOLERANCE}",
            "- began) + {CLOCK_TOLERANCE};",
            "NOT BETWEEN p_now - {CLOCK_TOLERANCE} AND",
            "p_digest, p_now + {REPEAT_WINDOW})",
            "EXIT WHEN waiting >= {MAX_WAITING_LANES};",
            "r.entries <= 100 AND r.bytes <= {MAX_DELIVERED_RUN}",
            "promote_due_1(p_now, {MAX_PROMOTED}, p_scheduled_low_water_mark)",
            "rest int4 := {MAX_RETURNED};",
            "), p_now - {MAX_AHEAD})",
            ", p_now - {MAX_AHEAD}), p_now + {MAX_AHEAD})",
            "+ LEAST(p_delay, {MAX_AHEAD}) +",
            "LEAST(p_now + {MAX_AHEAD},",
        ),
    }
)
"""The expressions that repeat a constant, by backend. A line break counts as a space. If an
expression changes, change its entry; if it is gone, delete its entry.
"""

RARE = ("MAX_AHEAD", "REPEAT_WINDOW")
"""No other number is likely to have these values. So each of them must be in an entry."""

_PLACE = re.compile(r"\{([A-Z_]+)\}")
_LUA_LOCALS = re.compile(r"^local ([A-Z][A-Z0-9_, ]*) = (\d[\d, ]*)$", re.MULTILINE)


def compile_entry(entry: str) -> re.Pattern[str]:
    """Return the pattern of an expression, with a group for each number."""
    parts = _PLACE.split(entry)
    return re.compile(
        "".join(r"(\d+)" if n % 2 else re.escape(part) for n, part in enumerate(parts))
    )


def find_wrong_numbers(text: str, entries: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong in the SQL of a backend."""
    text = " ".join(text.split())
    listed: set[int] = set()
    for entry in entries:
        names = _PLACE.findall(entry)
        matches = list(compile_entry(entry).finditer(text))
        if not matches:
            yield f"there is no {entry!r}"
        for match in matches:
            for n, name in enumerate(names, start=1):
                listed.add(match.start(n))
                if int(match[n]) != CORE[name]:
                    yield f"{match[0]!r}: {name} is {CORE[name]}"
    for name in RARE:
        for match in re.finditer(rf"\b{CORE[name]}\b", text):
            if match.start() not in listed:
                yield f"no entry has {name} in {text[match.start() - 60 : match.end()]!r}"


def read_lua_constants(text: str) -> Iterator[tuple[str, int]]:
    """Yield each local in capitals that is a number."""
    for names, numbers in _LUA_LOCALS.findall(text):
        yield from zip(names.split(", "), map(int, numbers.split(", ")), strict=True)


def read_backend(name: str) -> str:
    """Return the SQL of a backend, with that in its Python files."""
    folder = BACKENDS / name
    paths = sorted([*folder.rglob("*.sql"), *folder.rglob("*.py")])
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def compare_lua(constants: Mapping[str, set[int]]) -> list[str]:
    """Return what is wrong with the constants of Lua; several files may have the same one."""
    return [
        f"{name} is {sorted(constants.get(name, ()))} in Lua, {CORE[name]} in core"
        for name in sorted(IN_LUA)
        if constants.get(name) != {CORE[name]}
    ]


@pytest.mark.parametrize("backend", IN_SQL)
def test_sql_has_the_numbers_of_core(backend: str) -> None:
    assert list(find_wrong_numbers(read_backend(backend), IN_SQL[backend])) == []


@pytest.mark.parametrize("backend", IN_SQL)
def test_a_wrong_number_is_found_wherever_one_stands(backend: str) -> None:
    text = " ".join(read_backend(backend).split())
    for entry in IN_SQL[backend]:
        for match in compile_entry(entry).finditer(text):
            for n, name in enumerate(_PLACE.findall(entry), start=1):
                planted = f"{text[: match.start(n)]}{CORE[name] + 1}{text[match.end(n) :]}"
                assert list(find_wrong_numbers(planted, IN_SQL[backend])), (entry, name)


def test_a_number_that_no_entry_has_is_found() -> None:
    text = f"SELECT p_now - {MAX_AHEAD}"
    (problem,) = find_wrong_numbers(text, ())
    assert problem.startswith("no entry has MAX_AHEAD")


def test_lua_has_the_numbers_of_core() -> None:
    constants: dict[str, set[int]] = {}
    for path in (BACKENDS / "redis" / "lua").rglob("*.lua"):
        for name, number in read_lua_constants(path.read_text(encoding="utf-8")):
            constants.setdefault(name, set()).add(number)
    assert compare_lua(constants) == []
    planted = constants | {"MAX_PARKED": {1000, 999}}
    assert compare_lua(planted) == ["MAX_PARKED is [999, 1000] in Lua, 1000 in core"]
