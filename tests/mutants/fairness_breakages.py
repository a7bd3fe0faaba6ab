"""Breakages of fairness among tenants."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MEMORY = "tests/contract/test_memory.py::TestMemory::"
SQLITE = "tests/contract/test_sqlite.py::TestSQLite::"
REDIS = "tests/contract/test_redis.py::TestRedis::"
FAIRNESS = "tests/jobs/test_fairness.py::"

FAIRNESS_MUTANTS = (
    Mutant(
        "fairness: a reserved job charges nothing",
        "core/*.py",
        "self.virtual_time = $start + $charge\n",
        "self.virtual_time = $start\n",
        (f"{MEMORY}test_tenants_take_turns_within_one_exchange",),
    ),
    Mutant(
        "fairness: measured run times are ignored",
        "core/*.py",
        "$used = compute_charge($measured, $units)\n            $mean = self",
        "$used = charge\n            $mean = self",
        (f"{MEMORY}test_measured_run_times_decide_the_shares",),
    ),
    Mutant(
        "fairness: a charge ignores what the tenant needed before",
        "core/*.py",
        "$expected = self.mean_run_time\n        if $expected == 0:",
        "$expected = 0\n        if $expected == 0:",
        (f"{MEMORY}test_a_reserved_job_is_charged_what_its_tenant_needed_before",),
    ),
    Mutant(
        "fairness: unknown run times stay cheap",
        "core/*.py",
        "$expected = FIRST_CHARGE * 2 ** min(self.$count, MAX_DOUBLINGS)",
        "$expected = FIRST_CHARGE",
        (f"{MEMORY}test_unknown_run_times_cost_more_with_each_job",),
    ),
    Mutant(
        "fairness: jobs without run time are free",
        "core/*.py",
        "return min(max($run, MIN_CHARGE), MAX_CHARGE) * WEIGHT_UNITS // $weight",
        "return min($run, MAX_CHARGE) * WEIGHT_UNITS // $weight",
        (f"{MEMORY}test_short_jobs_take_turns_too",),
    ),
    Mutant(
        "fairness: weights are ignored",
        "core/*.py",
        "return min(max($run, MIN_CHARGE), MAX_CHARGE) * WEIGHT_UNITS // $weight",
        "return min(max($run, MIN_CHARGE), MAX_CHARGE)",
        (f"{MEMORY}test_a_weight_multiplies_the_share",),
    ),
    Mutant(
        "fairness: a tenant that was away has credit",
        "core/*.py",
        "if self.virtual_time < $floor:",
        "if self.virtual_time < 0:",
        (f"{MEMORY}test_a_tenant_that_was_away_has_no_credit",),
    ),
    Mutant(
        "fairness: a new tenant joins before those that wait",
        "core/*.py",
        "self.virtual_time = $floor + self.$expect($units)",
        "self.virtual_time = $floor",
        (f"{MEMORY}test_a_stream_of_new_tenants_starves_no_old_one",),
    ),
    Mutant(
        "fairness: a job that was parked joins again",
        "backends/memory/*.py",
        "$share.catch_up($peers.floor)",
        "$share.join($peers.floor, self.get_weight(group[3]))",
        (f"{MEMORY}test_a_job_that_was_parked_does_not_join_again",),
    ),
    Mutant(
        "SQLite: a new tenant joins before those that wait",
        "backends/sqlite/*.sql",
        "coalesce(f.floor, 0) + iif(\n            EXISTS (SELECT 1 FROM parked AS p WHERE p.seq = NEW.seq),",
        "coalesce(f.floor, 0) + iif(\n            true,",
        (f"{SQLITE}test_a_stream_of_new_tenants_starves_no_old_one",),
    ),
    Mutant(
        "SQLite: a job that was parked joins again",
        "backends/sqlite/*.sql",
        "coalesce(f.floor, 0) + iif(\n            EXISTS (SELECT 1 FROM parked AS p WHERE p.seq = NEW.seq),",
        "coalesce(f.floor, 0) + iif(\n            false,",
        (f"{SQLITE}test_a_job_that_was_parked_does_not_join_again",),
    ),
    Mutant(
        "fairness: a lease that a rescue ends stays charged",
        "backends/memory/*.py",
        "self.state.turns.settle($entry, $lease.charge, None)",
        "pass",
        (f"{MEMORY}test_a_closed_session_and_a_rescue_charge_nothing",),
    ),
    Mutant(
        "fairness: an unstarted job is charged",
        "backends/memory/*.py",
        "if not (isinstance($settlement, Released) and $settlement.unstarted):",
        "if True:",
        (f"{MEMORY}test_what_did_not_run_is_charged_nothing",),
    ),
    Mutant(
        "fairness: the setting of a queue is ignored",
        "jobs/declaration/*.py",
        "$fair = self.$settings.get($job.queue, self.$default)",
        "$fair = self.$default",
        (f"{FAIRNESS}test_the_setting_of_the_queue_decides_and_then_that_of_the_processor",),
    ),
    Mutant(
        "Redis: a reserved job charges its tenant nothing",
        "backends/redis/*.lua",
        "= $class.floor + $charge, $share",
        "= $class.floor, $share",
        (f"{REDIS}test_tenants_take_turns_within_one_exchange",),
    ),
    Mutant(
        "Redis: a tenant that was away has credit",
        "backends/redis/*.lua",
        "    $share[SHARE_TIME] = math.max($share[SHARE_TIME], $class.floor)\n",
        "",
        (f"{REDIS}test_a_tenant_that_was_away_has_no_credit",),
    ),
    Mutant(
        "Redis: a rescue charges the time of the lost worker",
        "backends/redis/*.lua",
        "settle_charge($lease, $lane, $ran)\n  end\n",
        "settle_charge($lease, $lane, true)\n  end\n",
        (f"{REDIS}test_a_closed_session_and_a_rescue_charge_nothing",),
    ),
    Mutant(
        "Redis: a job that does not fit in the reply stays charged",
        "backends/redis/*.lua",
        "      undo_charge($turn)\n",
        "",
        (f"{REDIS}test_a_reply_of_limited_size_changes_no_turn",),
    ),
    Mutant(
        "Redis: a job that was parked returns without its tenant",
        "backends/redis/*.lua",
        "    add_turn($lane, $rank, $due8, $field, sub($suffix, 2))\n",
        "    push_pair(to_return.ready, 0, member)\n",
        (f"{REDIS}test_a_parked_job_gives_its_turn_to_the_next",),
    ),
    Mutant(
        "Redis: a group without jobs keeps its turn",
        "backends/redis/*.lua",
        "      push(turns.dropped_turns, $group[GROUP_STORED])\n      $group[GROUP_STORED] = false\n",
        "      $group[GROUP_STORED] = false\n",
        (f"{REDIS}test_a_rate_tells_the_next_time",),
    ),
    Mutant(
        "SQLite: a reserved job keeps the turn of its tenant",
        "backends/sqlite/tenants.py",
        "if $time != virtual_time or first_seq != seq or first_due != due:",
        "if first_seq != seq or first_due != due:",
        (f"{SQLITE}test_the_names_of_a_queue_share_the_turns",),
    ),
    Mutant(
        "SQLite: a lease that ends does not move the turn of its tenant",
        "backends/sqlite/tenants.py",
        'db.run("rank_turns", *$class, write_shares($db, $class, $shares.values()))',
        "write_shares($db, $class, $shares.values())",
        (f"{SQLITE}test_a_job_that_is_shorter_than_expected_brings_its_tenant_forward",),
    ),
    Mutant(
        "SQLite: a job that does not fit in the reply stays charged",
        "backends/sqlite/tenants.py",
        "self._charge_again($leased)",
        "pass",
        (f"{SQLITE}test_a_reply_of_limited_size_changes_no_turn",),
    ),
    Mutant(
        "SQLite: a rescue charges the time of the lost worker",
        "backends/sqlite/transitions.py",
        "settle_charges($db, $lease.session, [$lease.seq], ran=False)",
        "settle_charges($db, $lease.session, [$lease.seq], ran=True)",
        (f"{SQLITE}test_a_closed_session_and_a_rescue_charge_nothing",),
    ),
    Mutant(
        "SQLite: a settled charge is charged again",
        "backends/sqlite/tenants.py",
        '    db.run("clear_charge", $session, $seq)\n',
        "",
        (f"{SQLITE}test_an_attempt_that_ran_is_charged_its_time",),
    ),
    Mutant(
        "SQLite: a stale completion is charged",
        "backends/sqlite/tenants.py",
        "if $tokens is None or $tokens[$row.seq] == ($row.fence, $row.nonce):",
        "if True:",
        (f"{SQLITE}test_a_completion_with_an_old_token_charges_nothing",),
    ),
    Mutant(
        "Redis: a lease that ends does not move the turn of its tenant",
        "backends/redis/*.lua",
        "for at = 1, time ~= $share[SHARE_STORED_TIME] and #unread or 0,",
        "for at = 1, 0,",
        (f"{REDIS}test_a_job_that_is_shorter_than_expected_brings_its_tenant_forward",),
    ),
    Mutant(
        "Redis: a lease that ends is not settled with its tenant",
        "backends/redis/*.lua",
        "- $lease.charge, $share[SHARE_LEASED] - 1\n  $share[SHARE_IS_CHANGED] = true\n",
        "- $lease.charge, $share[SHARE_LEASED] - 1\n",
        (f"{REDIS}test_measured_run_times_decide_the_shares",),
    ),
)
