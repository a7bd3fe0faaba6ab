"""One-line breakages of the product, and for each the tests that must see it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MEMORY = "tests/contract/test_memory.py::TestMemory::"
SQLITE = "tests/contract/test_sqlite.py::TestSQLite::"
SCENARIO = "tests/simulation/test_scenarios.py::"
SIMULATION = "tests/simulation/test_simulation.py::"
COMPLETER = "tests/jobs/worker/exchange/test_completer.py::"
HEALTH = "tests/jobs/worker/test_health.py::"
TRANSACTIONS = "tests/backends/sqlite/test_transactions.py::"
WORKER = "tests/jobs/worker/test_worker.py::"

MUTANTS = (
    # Tokens
    Mutant(
        "token compare dropped (settle)",
        "backends/sqlite/*.py",
        "if $row is None or ($row[3], $row[4]) != ($lease.$token.$fence, $lease.$token.$nonce):",
        "if $row is None:",
        (f"{SQLITE}test_a_settlement_writes_only_under_its_whole_token", "-k", "counter"),
    ),
    Mutant(
        "token compare dropped (progress)",
        "backends/memory/*.py",
        "or $held.$token != $one.$lease.$token:",
        "or ($held.$token != $one.$lease.$token and not isinstance($one, Progressed)):",
        (f"{MEMORY}test_a_settlement_writes_only_under_its_whole_token", "-k", "Progressed"),
    ),
    Mutant(
        "token compare dropped (completions in bulk)",
        "backends/sqlite/*.sql",
        "AND $l.$seq = $s.$value AND $l.$fence = ?4 AND $l.$nonce = ?5",
        "AND $l.$seq = $s.$value",
        (
            f"{SQLITE}test_a_settlement_writes_only_under_its_whole_token",
            "-k",
            "other and Completed",
        ),
    ),
    Mutant(
        "random half of the token ignored",
        "backends/memory/*.py",
        "or $held.$token != $one.$lease.$token:",
        "or $held.$token.fence != $one.$lease.$token.fence:",
        (f"{MEMORY}test_a_settlement_writes_only_under_its_whole_token", "-k", "random"),
    ),
    Mutant(
        "fence does not rise",
        "backends/memory/*.py",
        "entry.fence += 1",
        "entry.fence = 1",
        (f"{MEMORY}test_the_fence_rises_with_every_delivery_of_a_job",),
    ),
    # Sessions and rescue
    Mutant(
        "rescue without expiry check",
        "backends/sqlite/*.sql",
        "WHERE $dead_at IS NULL AND ($boot <> ?3 OR $expires <= ?2 OR $expires > ?2 + $ttl + 1)",
        "WHERE $dead_at IS NULL AND ($boot <> ?3 OR ?2 IS NOT NULL)",
        (f"{SQLITE}test_a_live_session_is_left_alone",),
    ),
    Mutant(
        "a rescued session lives on",
        "backends/memory/*.py",
        "if $tenant is None or $tenant.$dead or $tenant.$left:",
        "if $tenant is None or $tenant.$left:",
        (f"{MEMORY}test_a_rescued_session_never_lives_again",),
    ),
    Mutant(
        "`lost` not counted",
        "backends/sqlite/*.py",
        "= $Increments(lost=1)",
        "= $Increments(lost=0)",
        (f"{SQLITE}test_a_loss_is_counted_apart_from_failures_and_added_to_the_history",),
    ),
    Mutant(
        "one loss too many allowed",
        "backends/memory/*.py",
        "if $entry.$lost >= $max_lost and not $held.$cancel:",
        "if $entry.$lost > $max_lost and not $held.$cancel:",
        (f"{MEMORY}test_the_last_loss_makes_a_dead_letter",),
    ),
    # Time
    Mutant(
        "promote before due",
        "backends/sqlite/*.py",
        '$where = "insert_ready" if $due <= $db.$now else "insert_scheduled"',
        '$where = "insert_ready" if $due <= $db.$now + 3600 * MICRO else "insert_scheduled"',
        (f"{SQLITE}test_what_a_settlement_delays_is_never_early",),
    ),
    Mutant(
        "handed out before due",
        "backends/memory/*.py",
        "if $entry.$due <= $now:",
        "if $entry.$due <= $now + MICRO:",
        (f"{SIMULATION}test_one_seed_is_the_same_each_time",),
    ),
    Mutant(
        "local clock used",
        "backends/sqlite/*.py",
        "self.$now = $micros(self.$clock.$now())",
        'self.$now = $micros(__import__("time").time())',
        (f"{SQLITE}test_after_is_counted_from_now_on_the_clock_of_the_backend",),
    ),
    Mutant(
        "jitter comes early",
        "jobs/*.py",
        "(1.0 + $JITTER * $random.$random())",
        "(1.0 - $JITTER * $random.$random())",
        ("tests/jobs/declaration/test_policy.py::test_jitter_only_adds_and_at_most_a_fifth",),
    ),
    # Limits
    Mutant(
        "limit off by one",
        "backends/sqlite/*.py",
        "{$name: $gate.$limit - $gate.$held for $name, $gate in $gates.$items()}",
        "{$name: $gate.$limit - $gate.$held + 1 for $name, $gate in $gates.$items()}",
        (f"{SQLITE}test_no_more_than_the_limit_in_one_reply",),
    ),
    Mutant(
        "limit off by one over the fleet",
        "backends/memory/*.py",
        "return max(0, self.$limit - self.$held)",
        "return max(0, self.$limit - self.$held + 1)",
        (f"{SIMULATION}test_faults_break_no_promise[0]",),
    ),
    Mutant(
        "rescue gives no place back",
        "backends/memory/*.py",
        "if $held.counts_in_limit:",
        "if $held.counts_in_limit and settled is not None:",
        (f"{SIMULATION}test_faults_break_no_promise[0]",),
    ),
    # Numbers
    Mutant(
        "exchange number ignored",
        "backends/sqlite/*.py",
        "if $number == $head.$last and $number > 0:",
        "if $number == $head.$last and $number < 0:",
        (f"{SQLITE}test_a_repeat_brings_the_same_deliveries",),
    ),
    Mutant(
        "any number accepted",
        "backends/memory/*.py",
        "if $number != $session.$last + 1:",
        "if $number < 0:",
        (f"{MEMORY}test_a_number_before_the_last_is_out_of_order",),
    ),
    Mutant(
        "repeats under a new number",
        "jobs/worker/exchange/completer.py",
        "await self.$_clock.sleep($pause)",
        "self._number += 1",
        (f"{COMPLETER}test_an_unanswered_exchange_is_repeated_under_its_number",),
    ),
    Mutant(
        "half of a bisected batch forgotten",
        "jobs/*.py",
        "return await self.$_send($batch[$half:], $want)",
        "return await self.$_send($batch[$half + 1 :], $want)",
        (f"{COMPLETER}test_one_bad_settlement_does_not_wedge_the_rest",),
    ),
    # Sizes
    Mutant(
        "exchanges never shrink",
        "jobs/worker/exchange/exchange_size.py",
        "_SHRINK_FACTOR = 4.0",
        "_SHRINK_FACTOR = 1.0",
        (f"{SCENARIO}test_what_fits_a_slow_connection_only_one_by_one_is_done_one_by_one",),
    ),
    Mutant(
        "a smaller repeat gives nothing back",
        "backends/memory/operations.py",
        "if $left < 0 and deliveries:",
        "if $left < -(1 << 40) and deliveries:",
        (f"{MEMORY}test_a_smaller_repeat_gives_back_what_does_not_fit",),
    ),
    Mutant(
        "what a smaller repeat left out is forgotten",
        "jobs/worker/exchange/completer.py",
        "if applied < len(batch):",
        "if applied < 0:",
        (f"{COMPLETER}test_an_exchange_that_takes_too_long_shrinks_until_it_fits",),
    ),
    Mutant(
        "a session whose exchanges fail is kept",
        "jobs/worker/session/session.py",
        "give_up_after=session.ttl * $_fraction,",
        "give_up_after=1e9,",
        (f"{SCENARIO}test_a_worker_whose_exchanges_fail_gives_its_jobs_back_in_time",),
    ),
    # Transactions, keys, payloads
    Mutant(
        "savepoint removed",
        "backends/sqlite/*.py",
        "with $translated(self.$_path), $database.$savepoint():",
        "with $translated(self.$_path):",
        (
            "tests/backends/sqlite/connection/test_threads.py::test_what_a_failed_call_wrote_is_gone",
        ),
    ),
    Mutant(
        "unique key freed too early",
        "backends/sqlite/*.py",
        "    $due = None if $delay is None else $db.$now + max(0, $micros($delay))",
        "    free_unique($db, held.seq, held.lane)\n    $due = None if $delay is None else $db.$now + max(0, $micros($delay))",
        (f"{SQLITE}test_an_unfinished_job_keeps_its_key",),
    ),
    Mutant(
        "another body accepted under a kept id",
        "backends/memory/*.py",
        '"exists" if $known == $job.$digest() else "conflict"',
        '"exists" if $known != b"" else "conflict"',
        (f"{MEMORY}test_another_body_under_a_kept_id_is_a_conflict",),
    ),
    Mutant(
        "dead-letter payload re-encoded",
        "backends/memory/*.py",
        "$entry.$state, $entry.$finished_at, $entry.$reason = None, None, None",
        "$entry.$state, $entry.$finished_at, $entry.$reason = None, None, None\n    $entry.payload = msgspec.json.format($entry.payload or b'{}', indent=0)",
        (f"{MEMORY}test_the_payload_is_the_same_byte_for_byte",),
    ),
    Mutant(
        "paused queue served",
        "backends/memory/*.py",
        "if $line[0] in self.$data.$paused:",
        "if $line[0] in ():",
        (f"{MEMORY}test_a_paused_queue_returns_no_jobs",),
    ),
    # The engine
    Mutant(
        "unknown name failed",
        "jobs/*.py",
        "            $case $Why.$STOP | None:\n                return $Released($lease)",
        "            $case $Why.$STOP | None:\n                return Cancelled($lease, 'unknown')",
        ("tests/jobs/worker/attempt/test_attempt.py::test_an_unknown_name_is_given_back",),
    ),
    Mutant(
        "one retry too few",
        "jobs/*.py",
        "return $Reason.$EXHAUSTED if $failures > $max_retries else None",
        "return $Reason.$EXHAUSTED if $failures >= $max_retries else None",
        (f"{WORKER}test_a_failing_job_is_retried_then_becomes_a_dead_letter",),
    ),
    Mutant(
        "one retry too many",
        "jobs/*.py",
        "return $Reason.$EXHAUSTED if $failures > $max_retries else None",
        "return $Reason.$EXHAUSTED if $failures > $max_retries + 1 else None",
        (f"{SIMULATION}test_faults_break_no_promise[0]",),
    ),
    Mutant(
        "release counts a failure",
        "jobs/*.py",
        "            return $Released($delivery.$lease)\n    $assert_never",
        "            return Retried($delivery.$lease, 0.0, AttemptError(1, 'failure', 'Stopped'))\n    $assert_never",
        (f"{WORKER}test_stop_interrupts_after_the_grace_and_counts_nothing",),
    ),
    Mutant(
        "outcome kept after the lease was lost",
        "jobs/*.py",
        "        if $attempt.$lost:\n            return None",
        "        if $attempt.$lost and $attempt.task is None:\n            return None",
        (f"{SCENARIO}test_nothing_is_sent_under_a_lease_of_a_session_that_is_over",),
    ),
    Mutant(
        "jobs begun after their lease",
        "jobs/*.py",
        "if $started >= self.$session.$beating.$lease_valid_until:",
        "if $started < 0:",
        (f"{SCENARIO}test_a_worker_that_slept_too_long_begins_nothing_that_it_lost",),
    ),
    Mutant(
        "a lease is valid for ever",
        "jobs/*.py",
        "self.$lease_valid_until = $sent + self.$_ttl * (1 - $_MARGIN)",
        "self.$lease_valid_until = $sent + self.$_ttl * 100",
        (f"{SIMULATION}test_faults_break_no_promise[0]",),
    ),
    Mutant(
        "suspects share the blame",
        "jobs/*.py",
        "while len($slots.$suspects) > 1:",
        "while len($slots.$suspects) > 100:",
        (f"{SCENARIO}test_a_job_that_kills_its_workers_affects_no_other_job",),
    ),
    Mutant(
        "stop waits for a backend that is gone",
        "jobs/*.py",
        "        $task.$cancel()\n        await asyncio.$gather($task, $return_exceptions=True)",
        "        await asyncio.$gather($task, $return_exceptions=True)",
        (f"{SCENARIO}test_a_worker_stops_also_when_its_backend_is_gone",),
    ),
    Mutant(
        "rescues while its own session is in doubt",
        "jobs/*.py",
        "if self.$clock.$monotonic() < self.$_cautious_until():",
        "if self.$clock.$monotonic() < 0:",
        (f"{SCENARIO}test_an_outage_of_the_backend_counts_as_no_loss",),
    ),
    Mutant(
        "gives no session back after an outage",
        "jobs/*.py",
        "$patiently=not self.$_ended",
        "$patiently=False",
        (f"{SCENARIO}test_an_outage_of_the_backend_counts_as_no_loss",),
    ),
    Mutant(
        "jobs of a reply that a blocked loop did not read begin",
        "jobs/*.py",
        "            $reply = msgspec.structs.replace($reply, deliveries=[])\n",
        "",
        ("tests/jobs/worker/test_loop_watchdog.py",),
    ),
    Mutant(
        "a nonce gives nothing back",
        "backends/memory/*.py",
        "$nonce is not None and $held.token.nonce == $nonce",
        "False",
        (f"{MEMORY}test_a_nonce_releases_the_jobs_of_its_exchange",),
    ),
    Mutant(
        "what was not started is not handed back",
        "jobs/*.py",
        "        self.$_slots.$draining = True\n        self.$_release_all()",
        "        self.$_slots.$draining = True",
        (f"{SCENARIO}test_what_was_not_started_is_handed_back_at_stop",),
    ),
    Mutant(
        "cancel not passed on",
        "jobs/*.py",
        "attempt.interrupt($Why.CANCEL)",
        "pass",
        (f"{SCENARIO}test_a_cancel_reaches_a_running_job_with_the_next_heartbeat",),
    ),
    # Health
    Mutant(
        "a backend that is lost is called degraded",
        "jobs/*.py",
        "$seen.$failing or $seen.$answer < $first for $seen",
        "$seen.$failing for $seen",
        (f"{HEALTH}test_a_backend_that_answers_only_heartbeats_is_degraded",),
    ),
    Mutant(
        "an outage is logged with every call",
        "jobs/*.py",
        "            if $was_failing:\n                return",
        "",
        (f"{HEALTH}test_an_outage_is_two_lines_of_the_log_however_long",),
    ),
    Mutant(
        "one way that works again hides the other",
        "jobs/*.py",
        "if not $was_failing or self.$failing:",
        "if not $was_failing:",
        (f"{HEALTH}test_a_backend_that_answers_only_heartbeats_is_degraded",),
    ),
    Mutant(
        "health reports a session that is over",
        "jobs/*.py",
        "worker.$done is not None and not worker.$session.$over",
        "worker.$done is not None",
        (f"{HEALTH}test_a_worker_treats_its_leases_as_expired_before_the_backend_does",),
    ),
    # Real processes
    Mutant(
        "a job is settled before it is begun",
        "jobs/*.py",
        "        $started = self._monotonic()\n        if $started",
        "        self._end(attempt, Completed(attempt.delivery.lease))\n        $started = self._monotonic()\n        if $started",
        ("tests/crash/test_points.py", "-k", "TestSQLite and (settled or inside)"),
        deep=True,
    ),
    Mutant(
        "the heartbeat runs on the worker's loop",
        "jobs/*.py",
        "self.$events,\n            $threaded=isinstance(self.$clock, $SystemClock)",
        "self.$events,\n            $threaded=False",
        ("tests/crash/test_signals.py", "-k", "TestSQLite and blocks_the_event_loop"),
        deep=True,
    ),
    # Transactions of callers and handlers
    Mutant(
        "a handler's commit does not complete its job",
        "backends/sqlite/*.py",
        "if $settle_one($db, $head.$n, $completed) is not $Settled.$DONE:",
        "if not $head.$n:",
        (f"{SQLITE}test_a_completion_is_invisible_before_the_commit",),
    ),
    Mutant(
        "a lost lease commits",
        "backends/sqlite/*.py",
        "if $settle_one($db, $head.$n, $completed) is not $Settled.$DONE:",
        "if $settle_one($db, $head.$n, $completed) is $Settled.ALREADY:",
        (f"{SQLITE}test_the_whole_token_is_compared",),
    ),
    Mutant(
        "another file is joined",
        "backends/sqlite/*.py",
        "if $opened and $path.$samefile($opened):",
        "if $opened or $path:",
        (f"{TRANSACTIONS}test_a_database_in_memory_is_refused",),
    ),
    Mutant(
        "statements that commit each are joined",
        "backends/sqlite/*.py",
        "return $by_hand and not $connection.$in_transaction",
        "return False",
        (f"{TRANSACTIONS}test_a_connection_that_commits_each_statement_is_refused",),
    ),
    Mutant(
        "the lock of a handler never expires",
        "backends/sqlite/*.py",
        "self.$_loop.call_soon_threadsafe(self.$_watch_the_time)",
        "pass",
        (f"{TRANSACTIONS}test_a_def_handler_loses_the_lock_after_five_seconds",),
    ),
    Mutant(
        "a handler commits by itself",
        "backends/sqlite/*.py",
        '$allowed = self.$_ending or $what == "ROLLBACK"',
        "$allowed = True",
        (f"{TRANSACTIONS}test_a_handler_cannot_commit_by_itself",),
    ),
    Mutant(
        "a transactional enqueue notifies nobody",
        "backends/sqlite/*.py",
        "self.$watch.$add(created, $woken)",
        "pass",
        (f"{TRANSACTIONS}test_a_waiter_wakes_after_a_commit_on_a_callers_connection",),
    ),
)
