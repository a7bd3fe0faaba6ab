"""Breakages of rate limits and of limits by key."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MEMORY = "tests/contract/test_memory.py::TestMemory::"
SQLITE = "tests/contract/test_sqlite.py::TestSQLite::"
REDIS = "tests/contract/test_redis.py::TestRedis::"
POSTGRES = "tests/contract/test_postgres.py::TestPostgres::"
RATES = "tests/jobs/test_rate_limits.py::"

LIMIT_MUTANTS = (
    # Rates
    Mutant(
        "rate: no burst is kept",
        "core/*.py",
        "left = (self.burst - self.needed) * self.interval - max(0, $spent - $now)",
        "left = -max(0, $spent - $now)",
        (f"{MEMORY}test_a_burst_starts_at_once_and_is_saved_up_again",),
    ),
    Mutant(
        "rate: a quiet time saves up more than a burst",
        "core/*.py",
        "$start = max($spent, $now) if $units > 0 else $spent",
        "$start = $spent",
        (f"{MEMORY}test_a_burst_starts_at_once_and_is_saved_up_again",),
    ),
    Mutant(
        "rate: late returns make a second burst",
        "core/*.py",
        "$refund = max(0, self.cost * self.interval - max(0, $now - $taken))",
        "$refund = self.cost * self.interval",
        (f"{MEMORY}test_units_returned_late_make_no_second_burst",),
    ),
    Mutant(
        "rate: a burst follows a refusal",
        "core/*.py",
        "$opening = $now + $delay + (self.burst - self.needed) * self.interval",
        "$opening = $now + $delay",
        (f"{MEMORY}test_a_refused_job_stops_the_rate_for_everybody",),
    ),
    Mutant(
        "rate: a refusal is counted as a snooze of one job",
        "jobs/worker/attempt/*.py",
        "return RateLimited($delivery.lease, $outcome.retry_after)",
        "return Released($delivery.lease, $outcome.retry_after)",
        (f"{RATES}test_a_refused_call_stops_its_name_and_counts_nothing",),
    ),
    Mutant(
        "rate: a released job keeps the units that it never used",
        "jobs/worker/*.py",
        "for $one in self.$slots.take_all():\n            self.$back($one, Released($one.lease, unstarted=True))",
        "for $one in self.$slots.take_all():\n            self.$back($one, Released($one.lease))",
        (f"{RATES}test_a_prefetched_job_that_is_released_gives_its_units_back",),
    ),
    Mutant(
        "SQLite: what does not fit the reply takes units",
        "backends/sqlite/*.py",
        '$db.run("release_limit", $lane)\n        return_units($db, $lane, $db.now)',
        '$db.run("release_limit", $lane)',
        (f"{SQLITE}test_what_does_not_fit_the_reply_takes_no_units",),
    ),
    Mutant(
        "SQLite: a new session forgets what is spent",
        "backends/sqlite/*.py",
        "$limit.carry_over($old.limit, $old.spent_until, $db.now)",
        "$db.now",
        (f"{SQLITE}test_a_new_session_changes_the_rate_and_keeps_what_is_spent",),
    ),
    Mutant(
        "Redis: the reply says nothing of the rate",
        "backends/redis/*.lua",
        "local opening = count_room($rate) == 0 and find_opening($rate)",
        "local opening = false",
        (f"{REDIS}test_jobs_start_at_the_rate",),
    ),
    Mutant(
        "Redis: a repeat keeps the units of what it returns",
        "backends/redis/*.lua",
        "    give_units_back($lane.name, $lease.started8)\n    refund_keys($field, $lane, $lease)\n    end_lease",
        "    end_lease",
        (f"{REDIS}test_a_delivery_that_a_repeat_returns_gives_its_units_back",),
    ),
    Mutant(
        "PostgreSQL: units are not taken",
        "backends/postgres/*.sql",
        "SET spent_until = GREATEST(r.spent_until, p_now) + $taken.jobs * r.cost * r.interval",
        "SET spent_until = GREATEST(r.spent_until, p_now)",
        (f"{POSTGRES}test_a_rate_holds_over_the_whole_fleet",),
    ),
    Mutant(
        "PostgreSQL: a paused queue brings a next time",
        "backends/postgres/*.sql",
        "AND NOT EXISTS (\n                SELECT FROM {schema}.paused_queue p WHERE p.queue = w.queue AND (p.ends_at IS NULL OR p.ends_at > p_now)\n            )",
        "",
        (f"{POSTGRES}test_a_paused_queue_brings_no_next_time",),
    ),
    # Limits by key
    Mutant(
        "keys: a limit lets one more through",
        "backends/memory/*.py",
        "$use.in_use >= $limit.concurrency:\n",
        "$use.in_use > $limit.concurrency:\n",
        (f"{MEMORY}test_each_key_has_its_own_limit",),
    ),
    Mutant(
        "keys: the end of a lease wakes no parked job",
        "backends/sqlite/*.py",
        "unpark_all_lanes($db, ($limit, $key), $jobs[$key])",
        "pass",
        (f"{SQLITE}test_jobs_of_a_key_run_in_order",),
    ),
    Mutant(
        "keys: a cancelled job keeps its turn",
        "backends/sqlite/*.py",
        'if not $db.run("delete_parked", $seq).rowcount:\n        pass_turns($db, $lane, $seq)',
        'if not $db.run("delete_parked", $seq).rowcount:\n        pass',
        (f"{SQLITE}test_the_turn_of_a_cancelled_job_passes_on",),
    ),
    Mutant(
        "keys: a parked job keeps its turn at its other keys",
        "backends/memory/*.py",
        "return sum([self.unpark($other, $lane) for $other in $others]) > 0",
        "return False",
        (f"{MEMORY}test_the_turn_of_a_job_that_is_parked_for_another_key_passes_on",),
    ),
    Mutant(
        "Redis: a rescue frees no key",
        "backends/redis/*.lua",
        "  release_keys(writes.ended_keys)\n",
        "",
        (f"{REDIS}test_a_rescue_gives_the_place_of_a_key_back",),
    ),
    Mutant(
        "Redis: parked jobs are not considered when their limit changes",
        "backends/redis/*.lua",
        "  mark_changed($name)\nend",
        "end",
        (f"{REDIS}test_changed_limits_are_considered_at_once",),
    ),
    # Limits of queues
    Mutant(
        "a limit of a queue counts the jobs of all queues",
        "core/*.py",
        'return "" if $limited == $queue else None',
        'return ""',
        (f"{MEMORY}test_a_queue_limit_counts_all_names_of_its_queue",),
    ),
    Mutant(
        "memory: a change of a queue limit reaches only the names that declare it",
        "backends/memory/*.py",
        "names.update(*($one.session.names for $one in $state.sessions.values() if not $one.is_ended))",
        "pass",
        (f"{MEMORY}test_a_change_makes_a_queue_limit_that_no_worker_declares",),
    ),
    Mutant(
        "SQLite: limits of queues are not read",
        "backends/sqlite/*.py",
        "in {None, $lane.queue}",
        "in {None}",
        (f"{SQLITE}test_a_queue_limit_counts_all_names_of_its_queue",),
    ),
    Mutant(
        "Redis: a job has no key for the limit of its queue",
        "backends/redis/*.lua",
        "$limit.is_of_queue and '' or $carried[$limit[1]]",
        "$carried[$limit[1]]",
        (f"{REDIS}test_a_queue_limit_counts_all_names_of_its_queue",),
    ),
    Mutant(
        "Redis: sessions forget the limit of a queue that was made at run time",
        "backends/redis/*.lua",
        "for _, $limit in ipairs(list_changed_queues()) do",
        "for _, $limit in ipairs({}) do",
        (f"{REDIS}test_a_change_makes_a_queue_limit_that_no_worker_declares",),
    ),
    Mutant(
        "PostgreSQL: a job has no key for the limit of its queue",
        "backends/postgres/*.sql",
        "WHEN k.limit_name = 'queue=' || $o.queue THEN '' END AS key",
        "END AS key",
        (f"{POSTGRES}test_a_queue_limit_counts_all_names_of_its_queue",),
    ),
    # Changes at run time
    Mutant(
        "changes: a new session undoes a change",
        "core/*.py",
        "$changed = $own if $job in $keyed else apply_change($own, $changes.get($job))",
        "$changed = $own",
        (f"{MEMORY}test_a_change_wins_over_newer_sessions",),
    ),
    Mutant(
        "changes: a faster rate waits for the units of the slow one",
        "core/*.py",
        "return min($spent, $now + self.burst * self.interval)",
        "return $spent",
        (f"{MEMORY}test_a_change_of_a_rate_applies_at_once",),
    ),
    Mutant(
        "changes: a refusal ends with the old rate",
        "core/*.py",
        "if $spent > $now + $old.burst * $old.interval:",
        "if False:",
        (f"{MEMORY}test_a_change_keeps_the_time_of_a_refusal",),
    ),
    Mutant(
        "SQLite: a change of a limit forgets the earlier one",
        "backends/sqlite/*.py",
        "$change = _decode_change($row[0]).merge($change)",
        "pass",
        (f"{SQLITE}test_changes_of_one_limit_add_up",),
    ),
    Mutant(
        "SQLite: parked jobs of a changed key stay parked",
        "backends/sqlite/limit_changes.py",
        "    let_return($db, $key, $count)\n",
        "    pass\n",
        (f"{SQLITE}test_one_key_is_changed",),
    ),
    Mutant(
        "SQLite: a job overtakes parked jobs that still return",
        "backends/sqlite/exchange.py",
        "$lanes if $admission is None else exclude_changing($db, $lanes)",
        "$lanes",
        (f"{SQLITE}test_a_change_returns_many_parked_jobs_in_steps",),
    ),
    Mutant(
        "SQLite: the second step of a changed key returns nothing",
        "backends/sqlite/keyed_limits.py",
        'db.run("reduce_changed_key", $limit, $key, $lane, $moved)',
        'db.run("delete_changed_key", $limit, $key, $lane)',
        (f"{SQLITE}test_a_change_returns_many_parked_jobs_in_steps",),
    ),
    Mutant(
        "Redis: the second step of a changed key returns nothing",
        "backends/redis/*.lua",
        "if $returned == $wanted or $returned < $most then",
        "if true then",
        (f"{REDIS}test_a_change_returns_many_parked_jobs_in_steps",),
    ),
    Mutant(
        "memory: a job overtakes parked jobs that still return",
        "backends/memory/*.py",
        "$changing = $state.list_changing()",
        "$changing = set()",
        (
            "tests/contract/test_memory.py::TestMemory::test_a_change_returns_many_parked_jobs_in_steps",
        ),
    ),
    Mutant(
        "Redis: an exchange does not read the changes of keys",
        "backends/redis/*.lua",
        "apply_change(get_change($name), $limit[2], $limit[3], $limit[4], $limit[5])\n      if",
        "apply_change(nil, $limit[2], $limit[3], $limit[4], $limit[5])\n      if",
        (f"{REDIS}test_one_key_is_changed",),
    ),
    Mutant(
        "Redis: a changed limit forgets what is declared",
        "backends/redis/*.lua",
        "local $declared = $record and cmsgpack.unpack($record) or",
        "local $declared =",
        (f"{REDIS}test_a_reset_returns_to_what_the_newest_session_declares",),
    ),
    Mutant(
        "PostgreSQL: a change does not reach the limits by key",
        "backends/postgres/*.sql",
        "SELECT p_name UNION SELECT k.job_name FROM {schema}.keyed_limit k WHERE k.limit_name = p_name",
        "SELECT p_name",
        (f"{POSTGRES}test_a_limit_by_key_is_changed_for_parked_jobs_too",),
    ),
    Mutant(
        "PostgreSQL: the leases of an exchange count for no key",
        "backends/postgres/*.sql",
        "IF session.has_keys THEN\n                    PERFORM {schema}.count_keys_1(",
        "IF false THEN\n                    PERFORM {schema}.count_keys_1(",
        (f"{POSTGRES}test_a_limit_holds_over_the_whole_fleet",),
    ),
    Mutant(
        "PostgreSQL: an exchange forgets what it has planned for a key",
        "backends/postgres/keyed_limits.sql",
        "in_uses[key_numbers[i]] := in_uses[key_numbers[i]] + 1;",
        "NULL;",
        (f"{POSTGRES}test_each_key_has_its_own_limit",),
    ),
)
