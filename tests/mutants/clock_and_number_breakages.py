"""Breakages of what follows a clock that is set back, and of the bounds of stored numbers."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MEMORY = "tests/contract/test_memory.py::TestMemory::"
SQLITE = "tests/contract/test_sqlite.py::TestSQLite::"
REDIS = "tests/contract/test_redis.py::TestRedis::"
POSTGRES = "tests/contract/test_postgres.py::TestPostgres::"
REDIS_CLOCKS = "tests/backends/redis/test_clocks.py::"
REDIS_BOUNDS = "tests/backends/redis/test_bounds.py::"
RESCUE = "tests/backends/postgres/test_rescue.py::"
NUMBERING = "tests/backends/sqlite/test_numbering.py::"

_DEAD_WORKER = "test_a_dead_worker_is_noticed_after_the_clock_was_set_back"

CLOCK_AND_NUMBER_MUTANTS = (
    # A clock that is set back
    Mutant(
        "clock: a step cuts the delay of a refusal to a burst",
        "core/*.py",
        "return min($spent, $now + max($full, $spent - $before))",
        "return min($spent, $now + $full)",
        (f"{MEMORY}test_a_refusal_keeps_its_delay",),
    ),
    Mutant(
        "clock: a rate waits for the time that the clock shows twice",
        "backends/memory/*.py",
        "$step.state.follow_clock($step.now)\n",
        "\n",
        (f"{MEMORY}test_a_rate_waits_for_at_most_a_burst",),
    ),
    Mutant(
        "memory: parked jobs wait for the time that the clock shows twice",
        "backends/memory/*.py",
        "                $use.opens_at = $now\n\n",
        "                pass\n\n",
        (f"{MEMORY}test_a_refusal_of_a_key_keeps_its_delay",),
    ),
    Mutant(
        "SQLite: parked jobs wait for the time that the clock shows twice",
        "backends/sqlite/*.sql",
        "SET opens_at = min(opens_at, ?1), spent_until",
        "SET spent_until",
        (f"{SQLITE}test_a_refusal_of_a_key_keeps_its_delay",),
    ),
    Mutant(
        "Redis: a step of the clock cuts the delay of a refusal to a burst",
        "backends/redis/*.lua",
        "return math.min($spent, $now + math.max($full, $spent - $before))",
        "return math.min($spent, $now + $full)",
        (f"{REDIS}test_a_refusal_of_a_key_keeps_its_delay",),
    ),
    Mutant(
        "PostgreSQL: an exchange notices a step of the clock only where jobs are due",
        "backends/postgres/*.sql",
        "WHERE k.job_name = ANY (p_names) AND k.used_at > p_now + 1000000",
        "WHERE false",
        (f"{POSTGRES}test_a_refusal_of_a_key_keeps_its_delay",),
    ),
    Mutant(
        "PostgreSQL: a dead worker lives for as long as the clock was set back",
        "backends/postgres/*.sql",
        "SET expires_at = LEAST(s.expires_at, coalesce(p_monotonic, now) + s.ttl)",
        "SET expires_at = s.expires_at",
        (f"{RESCUE}{_DEAD_WORKER}",),
    ),
    Mutant(
        "Redis: a dead worker lives for as long as the clock was set back",
        "backends/redis/*.lua",
        "redis.call('ZADD', session_expiry_key, ends, id)",
        "redis.call('ZADD', session_expiry_key, expires_at, id)",
        (f"{REDIS_CLOCKS}{_DEAD_WORKER}",),
    ),
    # Numbers
    Mutant(
        "SQLite: the number of a lane reaches into that of a tenant",
        "backends/sqlite/*.sql",
        "CASE WHEN m.id < ?1 THEN m.id + 1",
        "CASE WHEN true THEN m.id + 1",
        (f"{NUMBERING}TestBounds",),
    ),
    Mutant(
        "SQLite: a process remembers the number of a lane that was deleted",
        "backends/sqlite/*.py",
        'self.run("change_numbering")\n        self.clear_lane_cache()',
        "self.clear_lane_cache()",
        (f"{NUMBERING}TestFreeing::test_a_number_that_means_another_lane_now_is_not_remembered",),
    ),
    Mutant(
        "SQLite: an enqueue uses numbers of lanes that it read before they were freed",
        "backends/sqlite/*.py",
        "values.insert(1, db.numbering)",
        'values.insert(1, db.fetch_one("get_numbering")[1])',
        (f"{NUMBERING}TestFreeing",),
    ),
    Mutant(
        "SQLite: a tenant with scheduled jobs only loses its number",
        "backends/sqlite/*.sql",
        "        AND t.value NOT IN (SELECT lane >> 20 FROM scheduled)\n",
        "",
        (f"{NUMBERING}TestFreeing::test_what_is_used_stays",),
    ),
    Mutant(
        "SQLite: a replayed job waits for the turn of another tenant",
        "backends/sqlite/*.py",
        "if lane >= TENANT_UNIT:",
        "if False:",
        (f"{NUMBERING}TestFreeing::test_a_replayed_job_waits_for_the_turn_of_its_own_tenant",),
    ),
    Mutant(
        "Redis: the numbers of lanes begin again",
        "backends/redis/*.lua",
        "if number >= 4294967295 then",
        "if false then",
        (f"{REDIS_BOUNDS}test_a_lane_after_the_last_number_is_refused",),
    ),
)
