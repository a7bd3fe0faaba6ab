"""How durable runs on SQLite could break, and the cases that must see it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SQLITE = "tests/contract/test_sqlite.py::TestSQLite::"
SQLITE_RUNS = "tests/backends/sqlite/test_runs.py::"

SQLITE_RUN_MUTANTS = (
    Mutant(
        "SQLite runs: a stale token stores a step",
        "backends/sqlite/sql/runs.sql",
        " AND $l.fence = $n.fence AND $l.nonce = $n.nonce\nWHERE true",
        "\nWHERE true",
        (f"{SQLITE}test_a_stale_token_writes_nothing",),
    ),
    Mutant(
        "SQLite runs: a step is stored after the end of its run",
        "backends/sqlite/settle.py",
        "elif type($seq) is int and $seq not in $others:",
        "elif type($seq) is int:",
        (f"{SQLITE}test_after_its_end_a_run_writes_nothing",),
    ),
    Mutant(
        "SQLite runs: a repeated step takes a signal",
        "backends/sqlite/runs.py",
        "if ($step.lease.ref, $step.number) in $stored:",
        "if True:",
        (f"{SQLITE}test_a_repeated_number_takes_no_signal",),
    ),
    Mutant(
        "SQLite runs: the step that asks for cleanup resets failures",
        "backends/sqlite/runs.py",
        "if $misses and $number != $CLEANUP_STEP}",
        "if $misses}",
        (f"{SQLITE}test_a_new_step_resets_failures_and_losses",),
    ),
    Mutant(
        "SQLite runs: several runs are suspended although one was cancelled",
        "backends/sqlite/sql/runs.sql",
        "WHERE $job.seq = $l.seq AND NOT $l.cancel_requested",
        "WHERE $job.seq = $l.seq",
        (f"{SQLITE}test_a_request_to_one_that_needs_no_cleanup_cancels_it",),
    ),
    Mutant(
        "SQLite runs: what else a run waited for resumes it later",
        "backends/sqlite/flows.py",
        "$runs = {$waiter.seq for $waiter in $waiters if $waiter.on is On.ANY}",
        "$runs = set()",
        (f"{SQLITE}test_a_signal_before_the_time",),
    ),
    Mutant(
        "SQLite runs: a flow that is certain to fail resumes a run",
        "backends/sqlite/sql/flows.sql",
        "AND NOT (?4 AND $c.awaited IN ('finished', 'any'))",
        "AND NOT (?4 AND $c.awaited IN ('finished'))",
        (f"{SQLITE}test_a_flow_that_is_certain_to_fail_has_not_ended",),
    ),
    Mutant(
        "SQLite runs: an exchange does not resume the run that it suspends",
        "backends/sqlite/flows.py",
        "$db.used = $db.used._replace(flows=True)\n",
        "pass\n",
        (f"{SQLITE}test_a_time_that_has_come_resumes_it_at_once",),
    ),
    Mutant(
        "SQLite runs: a worker does not know when the time of a run comes",
        "backends/sqlite/sql/exchange.sql",
        "SELECT min($due) AS $due FROM $scheduled\n    UNION ALL SELECT CAST(min($source) AS INTEGER) FROM $condition WHERE $kind = 'time'",
        "SELECT min($due) AS $due FROM $scheduled",
        (f"{SQLITE}test_the_reply_names_the_time",),
    ),
    Mutant(
        "SQLite runs: a cancel ends a run that has something to undo",
        "backends/sqlite/producing.py",
        "if $needs_cleanup:\n        ask_to_end($db, $seq)",
        "if False:\n        ask_to_end($db, $seq)",
        (f"{SQLITE}test_one_that_needs_cleanup_is_resumed",),
    ),
    Mutant(
        "SQLite runs: the id of an unread signal is forgotten",
        "backends/sqlite/sql/runs.sql",
        "AND $number < ?2 AND $payload IS NULL AND",
        "AND $number <= ?2 AND",
        (f"{SQLITE}test_the_id_of_a_taken_one_is_known_for_a_bounded_number_of_later_ones",),
    ),
    Mutant(
        "SQLite runs: a deleted run leaves its steps",
        "backends/sqlite/maintenance.py",
        '$db.run("delete_steps", $listed)',
        "pass",
        (f"{SQLITE_RUNS}test_a_deleted_run_leaves_no_rows",),
    ),
    Mutant(
        "SQLite runs: a prune deletes any number of steps at once",
        "backends/sqlite/sql/maintenance.sql",
        "WHERE $place = 0 OR $total <= ?2;",
        "WHERE true;",
        (f"{SQLITE_RUNS}test_a_prune_deletes_many_steps_in_several_transactions",),
    ),
)
