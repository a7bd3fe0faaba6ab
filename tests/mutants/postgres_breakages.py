"""Breakages of the PostgreSQL backend's functions."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

POSTGRES = "tests/contract/test_postgres.py::TestPostgres::"
RESCUE = "tests/backends/postgres/test_rescue.py::"
READINGS = "tests/backends/postgres/test_readings.py::"
OPEN = "tests/backends/postgres/test_open_transactions.py::"
TENANTS = "tests/backends/postgres/test_tenants.py::"
TURNS = "tests/backends/postgres/test_passed_turns.py::"
RUNS = "tests/backends/postgres/test_runs.py::"
CHANGES = "tests/backends/postgres/test_blocked_flow_changes.py::"
SQL = "backends/postgres/sql/functions/"

_SETTLED_UNDER = f"{POSTGRES}test_a_settlement_writes_only_under_its_whole_token"

POSTGRES_MUTANTS = (
    # Durable runs
    Mutant(
        "PostgreSQL: a run that suspends does not wait for who sends it a signal",
        f"{SQL}runs.sql",
        "IF $p_locked_runs IS NOT NULL THEN\n        PERFORM {schema}.lock_runs_1($p_locked_runs);",
        "IF $p_locked_runs IS NOT NULL THEN\n        NULL;",
        (f"{RUNS}test_a_run_that_suspends_finds_a_signal_that_is_being_stored",),
    ),
    Mutant(
        "PostgreSQL: who sends a signal does not wait for a run that is being suspended",
        f"{SQL}runs.sql",
        "IF $p_locked_runs IS NOT NULL THEN\n        PERFORM {schema}.lock_runs_1($p_locked_runs);",
        "IF $p_locked_runs IS NOT NULL THEN\n        NULL;",
        (f"{RUNS}test_a_signal_to_a_run_that_is_being_suspended_resumes_it",),
    ),
    Mutant(
        "PostgreSQL: an exchange that leaves changes hides that jobs were due before",
        f"{SQL}exchange.sql",
        "THEN LEAST($now, $next_due) ELSE",
        "THEN $now ELSE",
        (f"{CHANGES}test_a_backlog_of_scheduled_jobs_is_found_beside_one_of_changes",),
    ),
    Mutant(
        "PostgreSQL: runs to which a cancel was requested are released in any order",
        f"{SQL}sessions.sql",
        "        SELECT l.seq FROM {schema}.lease l WHERE l.session = $session_number AND l.cancel_requested\n"
        "    ));\n    FOR held IN\n        WITH ended AS (\n"
        "            DELETE FROM {schema}.lease l WHERE l.session = $session_number AND (l.nonce",
        "        SELECT l.seq FROM {schema}.lease l WHERE false\n"
        "    ));\n    FOR held IN\n        WITH ended AS (\n"
        "            DELETE FROM {schema}.lease l WHERE l.session = $session_number AND (l.nonce",
        (f"{RUNS}test_runs_that_are_released_together_are_locked_in_their_order", "-k", "released"),
    ),
    Mutant(
        "PostgreSQL: a step comes before the end of its run that it follows",
        f"{SQL}settle.sql",
        "CASE WHEN n.place > n.ended THEN 'x' WHEN",
        "CASE WHEN",
        (f"{POSTGRES}test_after_its_end_a_run_writes_nothing",),
    ),
    Mutant(
        "PostgreSQL: a step is stored under any token",
        f"{SQL}settle.sql",
        "LEFT JOIN {schema}.lease l ON l.session = p_session AND l.seq = u.seq AND l.fence = u.fence AND l.nonce = u.nonce",
        "LEFT JOIN {schema}.lease l ON l.session = p_session AND l.seq = u.seq",
        (f"{POSTGRES}test_a_stale_token_writes_nothing",),
    ),
    Mutant(
        "PostgreSQL: a run to which a cancel was requested is suspended",
        f"{SQL}runs.sql",
        "AND l.nonce = g.nonce AND NOT l.cancel_requested\n",
        "AND l.nonce = g.nonce\n",
        (f"{POSTGRES}test_a_request_to_a_run_that_gives_its_lease_back", "-k", "suspended"),
    ),
    # Tokens
    Mutant(
        "PostgreSQL: counter of the token ignored",
        "backends/postgres/*.sql",
        "DELETE FROM {schema}.$lease\n        WHERE $session = $p_session AND $seq = $p_seq AND $fence = $p_fence AND $nonce = $p_nonce",
        "DELETE FROM {schema}.$lease\n        WHERE $session = $p_session AND $seq = $p_seq AND $nonce = $p_nonce",
        (_SETTLED_UNDER, "-k", "counter"),
    ),
    Mutant(
        "PostgreSQL: random half of the token ignored",
        "backends/postgres/*.sql",
        "DELETE FROM {schema}.$lease\n        WHERE $session = $p_session AND $seq = $p_seq AND $fence = $p_fence AND $nonce = $p_nonce",
        "DELETE FROM {schema}.$lease\n        WHERE $session = $p_session AND $seq = $p_seq AND $fence = $p_fence",
        (_SETTLED_UNDER, "-k", "half"),
    ),
    Mutant(
        "PostgreSQL: session compare dropped",
        "backends/postgres/*.sql",
        "DELETE FROM {schema}.$lease\n        WHERE $session = $p_session AND $seq = $p_seq AND $fence = $p_fence AND $nonce = $p_nonce",
        "DELETE FROM {schema}.$lease\n        WHERE $seq = $p_seq AND $fence = $p_fence AND $nonce = $p_nonce",
        (_SETTLED_UNDER, "-k", "another"),
    ),
    Mutant(
        "PostgreSQL: token compare dropped (progress)",
        "backends/postgres/*.sql",
        "SET $noted = $noted | 2\n        WHERE $session = $p_session AND $seq = $p_seq AND $fence = $p_fence AND $nonce = $p_nonce",
        "SET $noted = $noted | 2\n        WHERE $session = $p_session AND $seq = $p_seq",
        (_SETTLED_UNDER, "-k", "half"),
    ),
    Mutant(
        "PostgreSQL: fence does not rise",
        f"{SQL}exchange.sql",
        "$p_main_lane, 1, coalesce((t.$attempts).$fence, 0) + 1,",
        "$p_main_lane, 1, coalesce((t.$attempts).$fence, 0),",
        (f"{POSTGRES}test_the_fence_rises_with_every_delivery_of_a_job",),
    ),
    Mutant(
        "PostgreSQL: a replay begins the fences anew",
        "backends/postgres/*.sql",
        "SET $due = now, $failures = 0,",
        "SET $due = now, fence = 0, $failures = 0,",
        (f"{POSTGRES}test_a_replayed_job_is_fenced_from_its_old_token",),
    ),
    # Numbers
    Mutant(
        "PostgreSQL: any number accepted",
        "backends/postgres/*.sql",
        "WHEN is_repeated OR p_number = last_number + 1 THEN",
        "WHEN is_repeated OR p_number <= last_number + 1 THEN",
        (f"{POSTGRES}test_a_number_before_the_last_is_out_of_order",),
    ),
    Mutant(
        "PostgreSQL: a repeat answers nothing of its results",
        "backends/postgres/*.sql",
        "status.results := p_results;",
        "status.results := '';",
        (f"{POSTGRES}test_a_repeat_brings_the_same_results",),
    ),
    Mutant(
        "PostgreSQL: a repeat hands out nothing",
        f"{SQL}exchange.sql",
        "JOIN {schema}.$job $j ON $j.$seq = $l.$seq\n    WHERE $l.$session = $p_session AND $l.$number = $p_number\n",
        "JOIN {schema}.$job $j ON $j.$seq = $l.$seq\n    WHERE $l.$session = $p_session AND $l.$number > $p_number\n",
        (f"{POSTGRES}test_a_repeat_brings_the_same_deliveries",),
    ),
    # Sessions and rescue
    Mutant(
        "PostgreSQL: a rescue locks sessions that have not expired",
        "backends/postgres/*.sql",
        "WHERE $s.$ended_at IS NULL AND NOT $s.$drained AND $s.$expires <= coalesce($p_mono, now) ORDER BY $s.$n",
        "WHERE $s.$ended_at IS NULL AND NOT $s.$drained ORDER BY $s.$n",
        (f"{RESCUE}test_a_rescue_locks_no_session_that_has_not_expired",),
    ),
    Mutant(
        "PostgreSQL: rescue without expiry check",
        "backends/postgres/*.sql",
        "WHERE $s.$n = $one.$n AND $s.$ended_at IS NULL AND $s.$expires <= coalesce($p_mono, now);",
        "WHERE $s.$n = $one.$n AND $s.$ended_at IS NULL;",
        (f"{RESCUE}test_a_session_that_is_renewed_while_a_rescue_ends_it_lives_on",),
    ),
    Mutant(
        "PostgreSQL: a rescued session lives on",
        "backends/postgres/*.sql",
        "WHERE $s.$id = $p_id AND $s.left_at IS NULL AND $s.$ended_at IS NULL",
        "WHERE $s.$id = $p_id AND $s.left_at IS NULL",
        (f"{POSTGRES}test_a_rescued_session_never_lives_again",),
    ),
    Mutant(
        "PostgreSQL: what a bounded rescue left is forgotten",
        f"{SQL}rescue.sql",
        "AND NOT EXISTS (SELECT FROM {schema}.$lease $l WHERE $l.$session = $s.$n);",
        ";",
        (f"{POSTGRES}test_the_limit_holds_and_more_is_reported",),
    ),
    Mutant(
        "PostgreSQL: a suspect that had not started counts a loss",
        f"{SQL}rescue.sql",
        "AND NOT ($l.lost >= 2 AND $s.held_several) AS is_loss",
        "AS is_loss",
        (
            "tests/backends/planning/test_backends.py::test_postgres_decides_the_same",
            "-k",
            "rescues",
        ),
    ),
    Mutant(
        "PostgreSQL: `lost` not counted",
        "backends/postgres/*.sql",
        "attempts.lost := attempts.lost + 1;",
        "attempts.lost := attempts.lost;",
        (f"{POSTGRES}test_a_loss_is_counted_apart_from_failures_and_added_to_the_history",),
    ),
    Mutant(
        "PostgreSQL: one loss too many allowed",
        "backends/postgres/*.sql",
        "$so_far.$lost >= p_max_lost",
        "$so_far.$lost > p_max_lost",
        (f"{POSTGRES}test_the_last_loss_makes_a_dead_letter",),
    ),
    Mutant(
        "PostgreSQL: the expiry of a session that left counts as a loss",
        f"{SQL}rescue.sql",
        "$s.left_at IS NULL AND NOT ($l.lost >= 2",
        "NOT ($l.lost >= 2",
        (f"{POSTGRES}test_the_expiry_of_a_session_that_left_counts_no_loss",),
    ),
    Mutant(
        "PostgreSQL: what still runs is released at the close",
        "backends/postgres/*.sql",
        "WHERE $r.$seq = $l.$seq AND $r.fence",
        "WHERE $r.$seq = $l.$seq + 1 AND $r.fence",
        (f"{POSTGRES}test_what_still_runs_stays_leased_and_the_session_has_left",),
    ),
    # Time
    Mutant(
        "PostgreSQL: promote before due",
        "backends/postgres/*.sql",
        "$s.$due >= $p_floor AND $s.$due <= $p_now",
        "$s.$due >= $p_floor AND $s.$due <= $p_now + 3600000000",
        (f"{POSTGRES}test_jobs_become_due_one_after_the_other",),
        deep=True,
    ),
    # Limits, caps, order
    Mutant(
        "PostgreSQL: limit off by one",
        "backends/postgres/*.sql",
        "LEAST(l.concurrency - l.in_use,",
        "LEAST(l.concurrency - l.in_use + 1,",
        (f"{POSTGRES}test_no_more_than_the_limit_in_one_reply",),
    ),
    Mutant(
        "PostgreSQL: a lease that ends frees no place",
        "backends/postgres/*.sql",
        "SET in_use = u.in_use - jobs[width_bucket(u.number, numbers)] WHERE",
        "SET in_use = u.in_use WHERE",
        (f"{POSTGRES}test_rescue_gives_places_back",),
    ),
    Mutant(
        "PostgreSQL: cap ignored",
        "backends/postgres/exchange.py",
        "total = min(total, options.limit)",
        "total = request.total",
        (f"{POSTGRES}test_a_queue_cap_spans_the_lanes_of_the_queue",),
    ),
    Mutant(
        "PostgreSQL: a plan with locks reads the jobs that a caller holds",
        "backends/postgres/sql/functions/planned_exchange.sql",
        "ORDER BY r.due, r.seq LIMIT p_most_jobs FOR UPDATE SKIP LOCKED",
        "ORDER BY r.due, r.seq LIMIT p_most_jobs",
        (
            "tests/backends/postgres/test_planned_exchange.py::test_jobs_behind_those_that_a_caller_holds_are_leased",
        ),
    ),
    Mutant(
        "PostgreSQL: ageing ignored",
        "backends/postgres/sql/functions/exchange.sql",
        "-lane.level - CASE WHEN p_ageing > 0 AND p_now > r.due",
        "-lane.level - CASE WHEN p_ageing > 0 AND p_now < r.due",
        (f"{POSTGRES}test_a_head_ages_one_level_for_each_whole_span",),
    ),
    Mutant(
        "PostgreSQL: paused queue served",
        "backends/postgres/*.sql",
        "WHERE p.queue = p_queue AND (p.ends_at IS NULL OR p.ends_at > p_now)\n    );\nEND",
        "WHERE false\n    );\nEND",
        (f"{POSTGRES}test_a_paused_queue_returns_no_jobs",),
    ),
    Mutant(
        "PostgreSQL: a pause does not end",
        "backends/postgres/*.sql",
        "WHERE p.queue = p_queue AND (p.ends_at IS NULL OR p.ends_at > p_now)\n    );\nEND",
        "WHERE p.queue = p_queue\n    );\nEND",
        (f"{READINGS}test_a_pause_ends_while_another_queue_is_paused",),
    ),
    # Readings of operators
    Mutant(
        "PostgreSQL: a completed job does not refer to its session",
        "backends/postgres/*.sql",
        "nullif($x.$lost, 0), $p_session, 1, $x.$id",
        "nullif($x.$lost, 0), NULL, 1, $x.$id",
        (f"{POSTGRES}test_a_completed_attempt_names_its_session_and_host",),
    ),
    Mutant(
        "PostgreSQL: a search ignores its budget",
        "backends/postgres/*.sql",
        "IF $number >= $p_budget OR ($matched AND",
        "IF ($matched AND",
        (f"{POSTGRES}test_a_search_stops_at_its_budget_and_continues",),
    ),
    Mutant(
        "PostgreSQL: a heartbeat without vitals deletes them",
        "backends/postgres/*.sql",
        "$vitals = coalesce($p_vitals, $s.$vitals)\n    WHERE $s.$id = $p_id",
        "$vitals = $p_vitals\n    WHERE $s.$id = $p_id",
        (f"{POSTGRES}test_vitals_are_listed_with_the_session",),
    ),
    Mutant(
        "PostgreSQL: a stale step of a bulk operation is written",
        "backends/postgres/*.sql",
        "AND $r.version = p_version FOR UPDATE;",
        "FOR UPDATE;",
        (f"{POSTGRES}test_a_step_of_another_version_changes_nothing",),
    ),
    Mutant(
        "PostgreSQL: a record of another version is replaced",
        "backends/postgres/*.sql",
        "AND (p_version IS NULL OR $r.version = p_version) RETURNING",
        "RETURNING",
        (f"{POSTGRES}test_only_the_given_version_is_replaced",),
    ),
    Mutant(
        "PostgreSQL: all records are kept",
        "backends/postgres/maintenance.sql",
        "DELETE FROM {schema}.record $r WHERE $r.kind = p_kind AND $r.position <= $newest - p_keep;",
        "",
        (f"{POSTGRES}test_only_the_newest_records_are_kept",),
    ),
    Mutant(
        "PostgreSQL: a job holds its key against itself",
        "backends/postgres/*.sql",
        "WHERE $u.$name = $p_name AND $u.$id <> $p_id AND",
        "WHERE $u.$name = $p_name AND",
        (f"{POSTGRES}test_a_job_does_not_hold_its_own_key_against_itself",),
    ),
    # Unique keys, ids
    Mutant(
        "PostgreSQL: a job that runs is replaced",
        "backends/postgres/*.sql",
        "IN ('pending', 'scheduled', 'retrying')",
        "IN ('pending', 'scheduled', 'retrying', 'processing')",
        (f"{POSTGRES}test_a_job_that_runs_is_not_replaced",),
    ),
    Mutant(
        "PostgreSQL: a replaced retry loses its backoff",
        "backends/postgres/*.sql",
        "$new_due := GREATEST($new_due, $old.due);",
        "NULL;",
        (f"{POSTGRES}test_a_retry_takes_the_payload_and_keeps_its_backoff",),
    ),
    Mutant(
        "PostgreSQL: unique key not freed",
        "backends/postgres/*.sql",
        "SELECT array_agg(d.$seq) INTO freed FROM deleted d;",
        "freed := p_seqs;",
        (f"{POSTGRES}test_the_end_of_its_job_frees_the_key",),
    ),
    Mutant(
        "PostgreSQL: the end of an old holder frees the key of the new one",
        "backends/postgres/sql/functions/settle.sql",
        "ON u.name = a.name AND u.key = k.key AND u.seq = k.seq\n"
        "            WHERE u.valid_until IS NULL\n"
        "            ORDER",
        "ON u.name = a.name AND u.key = k.key\n"
        "            WHERE u.valid_until IS NULL\n"
        "            ORDER",
        (f"{POSTGRES}test_the_end_of_an_old_holder_frees_nothing_of_the_new_one",),
    ),
    Mutant(
        "PostgreSQL: another body accepted under a kept id",
        "backends/postgres/*.sql",
        "CASE WHEN $known = $g.$digest THEN 'e' ELSE 'x' END",
        "'e'",
        (f"{POSTGRES}test_another_body_under_a_kept_id_is_a_conflict",),
    ),
    Mutant(
        "PostgreSQL: what stands beside a conflict is stored anyway",
        "backends/postgres/*.sql",
        "RAISE EXCEPTION 'the call is refused' USING ERRCODE = 'NB002';",
        "NULL;",
        (f"{POSTGRES}test_one_conflict_refuses_the_whole_call",),
    ),
    # Operators and schedules
    Mutant(
        "PostgreSQL: a request to cancel is forgotten when the attempt ends",
        "backends/postgres/*.sql",
        "$waits := NOT $p_lease.$cancel;",
        "$waits := true;",
        (f"{POSTGRES}test_what_the_worker_settles_after_a_request",),
    ),
    Mutant(
        "PostgreSQL: a worker is asked to cancel what another holds",
        "backends/postgres/*.sql",
        "WHERE $l.$session = $me.$n AND $l.$cancel;",
        "WHERE $l.$cancel;",
        (f"{POSTGRES}test_only_the_worker_that_holds_it_gets_the_cancel",),
    ),
    Mutant(
        "PostgreSQL: a tick is decided twice",
        "backends/postgres/*.sql",
        "WHEN $kept -> 'last_tick' #>> '{}' IS DISTINCT FROM $p_expected THEN 'moved'",
        "WHEN false THEN 'moved'",
        (f"{POSTGRES}test_a_tick_that_another_scheduler_fired_enqueues_nothing",),
    ),
    # Turns of tenants
    Mutant(
        "PostgreSQL: the minimum of the turns does not rise",
        f"{SQL}tenants.sql",
        "UPDATE {schema}.share_class f SET min_virtual_time = u.min_virtual_time\n",
        "UPDATE {schema}.share_class f SET min_virtual_time = f.min_virtual_time\n",
        (f"{POSTGRES}test_a_tenant_that_was_away_has_no_credit",),
    ),
    Mutant(
        "PostgreSQL: a lease that a rescue ends stays charged to its tenant",
        f"{SQL}sessions.sql",
        "IF $lease.charge IS NOT NULL THEN",
        "IF false THEN",
        (f"{POSTGRES}test_a_closed_session_and_a_rescue_charge_nothing",),
    ),
    Mutant(
        "PostgreSQL: a measured run time is added to the charge",
        f"{SQL}tenants.sql",
        "sum(u.used - u.charge)",
        "sum(u.used)",
        (f"{POSTGRES}test_measured_run_times_decide_the_shares",),
    ),
    Mutant(
        "PostgreSQL: an unstarted job is charged to its tenant",
        f"{SQL}tenants.sql",
        "CASE WHEN p_kinds IS NULL OR substr(p_kinds, CAST(u.place AS int4), 1) <> 'u'\n",
        "CASE WHEN true\n",
        (f"{POSTGRES}test_what_did_not_run_is_charged_nothing",),
    ),
    Mutant(
        "PostgreSQL: the next turns of a tenant are not compared",
        "backends/postgres/first_turns.py",
        "if own.virtual_time <= next_time:",
        "if own.virtual_time < 0:",
        (f"{POSTGRES}test_a_tenant_far_behind_gets_several_turns_before_many_others",),
    ),
    Mutant(
        "PostgreSQL: a plan is not made again with more jobs of a tenant",
        "backends/postgres/source.py",
        'yield from self._read(jobs, group, "group_factor")',
        'yield from self._read(jobs, None, "group_factor")',
        (f"{POSTGRES}test_a_tenant_far_behind_gets_several_turns_before_many_others",),
    ),
    Mutant(
        "PostgreSQL: a tenant joins at the minimum",
        f"{SQL}tenants.sql",
        "            $least := $least + {schema}.compute_next_charge_1(",
        "            $least := $least + 0 * {schema}.compute_next_charge_1(",
        (f"{POSTGRES}test_a_new_tenant_joins_behind_those_that_wait",),
    ),
    Mutant(
        "PostgreSQL: a parked job joins again",
        f"{SQL}tenants.sql",
        " AND NOT EXISTS (SELECT FROM {schema}.parked p WHERE p.seq = NEW.seq) THEN",
        " THEN",
        (f"{POSTGRES}test_a_job_that_was_parked_does_not_join_again",),
    ),
    Mutant(
        "PostgreSQL: the lane of a tenant is deleted while a job comes",
        f"{SQL}base.sql",
        "(0 < ALL ($ids) OR {schema}.lock_tenant_lanes_1($ids))",
        "(true OR {schema}.lock_tenant_lanes_1($ids))",
        (f"{TENANTS}test_a_job_that_comes_while_its_lane_is_deleted_gets_a_new_one",),
    ),
    Mutant(
        "PostgreSQL: the lane of a tenant with a waiting job is deleted",
        f"{SQL}tenants.sql",
        "EXISTS (SELECT FROM {schema}.job j WHERE j.lane = a.id AND j.lane < 0)",
        "false",
        (f"{TENANTS}test_tenants_that_come_and_go_leave_no_lanes",),
    ),
    Mutant(
        "PostgreSQL: the lane of a tenant with a completed job is deleted",
        f"{SQL}tenants.sql",
        "AND (d.finished_at, d.seq) > (h.finished_at, h.seq)\n                    )\n                ) OFFSET 0",
        "AND (d.finished_at, d.seq) < (h.finished_at, h.seq)\n                    )\n                ) OFFSET 0",
        (f"{TENANTS}test_tenants_that_come_and_go_leave_no_lanes",),
    ),
    Mutant(
        "PostgreSQL: the first lane of a tenant is deleted while another name comes",
        f"{SQL}base.sql",
        "AND $l.share = $l.id FOR KEY SHARE",
        "AND $l.share = $l.id",
        (f"{TENANTS}test_the_first_lane_of_a_tenant_stays_while_another_one_is_created",),
    ),
    Mutant(
        "PostgreSQL: the number of another lane is given again",
        f"{SQL}base.sql",
        "EXIT WHEN NOT EXISTS (SELECT FROM {schema}.lane l WHERE l.id IN (number, -number));",
        "EXIT;",
        (f"{TENANTS}test_numbers_of_lanes_begin_again_after_the_last_one",),
    ),
    # Turns of keys
    Mutant(
        "PostgreSQL: a parked job that a caller holds has no turn any more",
        f"{SQL}limits.sql",
        "opens_at = LEAST(u.opens_at, p_now + 1000000)",
        "opens_at = u.opens_at",
        (f"{TURNS}test_a_job_that_a_caller_holds_while_its_key_gets_room_is_not_forgotten",),
    ),
    Mutant(
        "PostgreSQL: jobs leave a lane to which others return after a change",
        "backends/postgres/*.sql",
        "WHERE NOT coalesce(changing[r.place], false) AND NOT",
        "WHERE NOT",
        (f"{POSTGRES}test_a_change_returns_many_parked_jobs_in_steps",),
    ),
    Mutant(
        "PostgreSQL: a turn is deleted while a job comes",
        f"{SQL}tenants.sql",
        "(SELECT FROM {schema}.ready r WHERE r.lane = t.lane OFFSET 0)\n        FOR UPDATE SKIP LOCKED",
        "(SELECT FROM {schema}.ready r WHERE r.lane = t.lane OFFSET 0)",
        (f"{TENANTS}test_a_job_that_comes_while_a_turn_is_removed_keeps_it",),
    ),
    # Callers' open transactions
    Mutant(
        "PostgreSQL: the end of a job waits for its unique key",
        f"{SQL}settle.sql",
        "ORDER BY u.name, u.key FOR UPDATE OF u SKIP LOCKED",
        "ORDER BY u.name, u.key FOR UPDATE OF u",
        (f"{POSTGRES}test_a_duplicate_does_not_delay_the_waiting_holder",),
    ),
    Mutant(
        "PostgreSQL: a job that has ended holds its key until prune",
        f"{SQL}enqueue.sql",
        "OR EXISTS (SELECT FROM {schema}.job j WHERE j.seq = p_key.seq)",
        "OR true",
        (f"{POSTGRES}test_a_key_is_free_in_the_transaction_that_found_its_holder",),
    ),
    Mutant(
        "PostgreSQL: a key that was not released stays for ever",
        f"{SQL}settle.sql",
        "IF cardinality(freed) IS DISTINCT FROM cardinality(p_seqs) THEN",
        "IF false THEN",
        (f"{OPEN}test_prune_deletes_the_keys_that_could_not_be_released",),
    ),
    Mutant(
        "PostgreSQL: an added turn is deleted while another enqueue relies on it",
        f"{SQL}tenants.sql",
        "t.share = ANY (shares) AND t.lane = ANY (merged_lanes) FOR UPDATE SKIP LOCKED",
        "t.share = ANY (shares) FOR UPDATE SKIP LOCKED",
        (f"{OPEN}test_a_turn_that_was_added_is_kept_for_a_job_that_comes_meanwhile",),
    ),
    Mutant(
        "PostgreSQL: a locked job hides those of other lanes",
        f"{SQL}exchange.sql",
        "SELECT CASE WHEN u.planned > 0 THEN 9223372036854775807 ELSE u.mark END",
        "SELECT 9223372036854775807",
        (f"{POSTGRES}test_a_waiting_job_that_is_replaced_delays_no_other",),
    ),
)
