"""Breakages of flows: conditions, counts, replays, and what is kept."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MEMORY = "tests/contract/test_memory.py::TestMemory::"
SQLITE = "tests/contract/test_sqlite.py::TestSQLite::"
PLANNER = "backends/planning/*.py"

FLOW_MUTANTS = (
    # Which end meets a condition
    Mutant(
        "flows: a failure counts as a success",
        PLANNER,
        "return ($change is $kind.SUCCEEDED) is ($on is $kinds.SUCCESS)",
        "return $on is $kinds.SUCCESS",
        (f"{MEMORY}test_a_failing_end",),
    ),
    Mutant(
        "flows: a job that waits for any end waits for a success",
        PLANNER,
        "if $on is $kinds.FINISHED:\n        return True",
        "if $on is $kinds.FINISHED:\n        return change is not Transition.FAILED",
        (f"{MEMORY}test_a_failing_end",),
    ),
    Mutant(
        "flows: a cancelled source counts as completed",
        PLANNER,
        "$succeeded = $state is $states.COMPLETED",
        "$succeeded = $state is not $states.FAILED",
        (f"{MEMORY}test_a_failing_end",),
    ),
    Mutant(
        "flows: the reason of a cancelled job is always a dependency",
        PLANNER,
        "return DEPENDENCY if $on is $kinds.SUCCESS else NOT_NEEDED",
        "return DEPENDENCY",
        (f"{MEMORY}test_a_success_cancels_those_that_wait_for_a_failure",),
    ),
    Mutant(
        "flows: what is cancelled does not end",
        PLANNER,
        "for $member in self.$data.cancel($impossible):\n                self.note_end($member, $states.CANCELLED)",
        "self.$data.cancel($impossible)",
        (f"{MEMORY}test_a_failing_end",),
    ),
    # Counts
    Mutant(
        "flows: a flow ends before its last member",
        PLANNER,
        "left = $flow.unfinished - sum($ended[$flow_id, $state] for $state in FINISHED)",
        "left = max(0, $flow.unfinished - 2)",
        (f"{MEMORY}test_the_counts_follow_the_members",),
    ),
    Mutant(
        "flows: a group does not count in its flow",
        PLANNER,
        "if $parent is not None and any($counted.values()):",
        "if False:",
        (f"{MEMORY}test_a_join_waits_for_all_members",),
    ),
    Mutant(
        "flows: a failing flow waits for its last member",
        PLANNER,
        "elif $flow.has_failed and not $had_failed:\n            $change = $kind.FAILING",
        "elif $flow.has_failed and not $had_failed:\n            $change = None",
        (f"{MEMORY}test_a_failure_is_seen_at_once",),
    ),
    Mutant(
        "flows: a tolerated failure fails the flow",
        "core/*.py",
        "return self.failed + self.cancelled > self.max_failed",
        "return self.failed + self.cancelled > 0",
        (f"{MEMORY}test_failures_up_to_the_tolerance",),
    ),
    Mutant(
        "flows: one failure more is tolerated",
        "core/*.py",
        "return self.failed + self.cancelled > self.max_failed",
        "return self.failed + self.cancelled > self.max_failed + 1",
        (f"{MEMORY}test_failures_up_to_the_tolerance",),
    ),
    Mutant(
        "flows: cancelled members are tolerated",
        "core/*.py",
        "return self.failed + self.cancelled > self.max_failed",
        "return self.failed > self.max_failed",
        (f"{MEMORY}test_it_can_be_cancelled",),
    ),
    Mutant(
        "flows: a flow without members never ends",
        PLANNER,
        "if not $flow.unfinished:\n            self.$flows[$flow.id] = $flow",
        "if False:\n            self.$flows[$flow.id] = $flow",
        (f"{MEMORY}test_an_empty_group",),
    ),
    # Bounds
    Mutant(
        "flows: what a step leaves is forgotten",
        PLANNER,
        "if self.$changes:\n            self.$data.put_changes(self.$changes)\n            self.$changes = []",
        "self.$changes = []",
        (f"{MEMORY}test_more_than_one_step_resumes",),
    ),
    Mutant(
        "flows: one step resumes all",
        PLANNER,
        "$waiters = self.$data.list_waiters($changes, self.$left + 1)",
        "$waiters = self.$data.list_waiters($changes, 1_000_000)\n            self.$left = 1_000_000",
        (f"{MEMORY}test_more_than_one_step_resumes",),
    ),
    # Replays
    Mutant(
        "flows: a replay leaves the dependents cancelled",
        PLANNER,
        "self._note($kinds.JOB, $member.job_id, $kind.REOPENED)",
        "pass",
        (f"{MEMORY}test_the_dependents_wait_again",),
    ),
    Mutant(
        "flows: a replay leaves the flow ended",
        PLANNER,
        "self.$ended[$member.flow, $state] -= 1",
        "pass",
        (f"{MEMORY}test_the_dependents_wait_again",),
    ),
    Mutant(
        "flows: one of two failed sources is enough to wait again",
        "backends/memory/*.py",
        "and not any($condition.is_impossible for _, $condition in $conditions)",
        "and True",
        (f"{MEMORY}test_a_job_with_two_failed_sources_waits_for_both_replays",),
    ),
    # What is stored
    Mutant(
        "flows: a source that has ended is waited for",
        PLANNER,
        "if $change is not None and SourceChange($source, $change) not in self.$changes:",
        "if False:",
        (f"{MEMORY}test_a_source_that_has_failed_counts",),
    ),
    Mutant(
        "flows: unknown sources are stored",
        PLANNER,
        "if $kind is SourceKind.FLOW and $source_id not in $known:",
        "if False:",
        (f"{MEMORY}test_an_unknown_source_is_refused",),
    ),
    Mutant(
        "flows: a job may wait for one that is in no flow",
        PLANNER,
        "return {$job.id for $job in $jobs if $job.options.flow in $flow_ids}",
        "return {$job.id for $job in $jobs}",
        (f"{MEMORY}test_a_source_in_no_flow_of_the_call_is_refused",),
    ),
    Mutant(
        "flows: another flow with the same id is taken for it",
        PLANNER,
        "if $values != ($new.name, $new.parent, $new.members, $new.max_failed):",
        "if False:",
        (f"{MEMORY}test_another_flow_with_the_id_is_refused",),
    ),
    Mutant(
        "flows: a repeat runs a flow again",
        PLANNER,
        "if _has_ended($job.options.flow, $flows) and $job.id not in $digests:",
        "if False:",
        (f"{MEMORY}test_a_repeat_after_the_members_were_pruned",),
    ),
    Mutant(
        "flows: members are pruned while their flow runs",
        "backends/memory/*.py",
        "return $entry.final_state is not None and not $flows.is_running($entry.options.flow)",
        "return $entry.final_state is not None",
        (f"{MEMORY}test_a_member_stays_while_its_flow_runs",),
    ),
    Mutant(
        "flows: a resumed job keeps an old due time",
        "backends/memory/*.py",
        "self.$requeue($entry, max($entry.due, self.now))",
        "self.$requeue($entry, $entry.due)",
        (f"{MEMORY}test_it_is_due_when_it_is_resumed",),
    ),
    # SQLite
    Mutant(
        "flows: a job is resumed at its first condition (SQLite)",
        "backends/sqlite/*.sql",
        "WHERE NOT EXISTS (SELECT 1 FROM $wait_condition AS $c WHERE $c.$waiter = $s.$seq)",
        "WHERE 1",
        (f"{SQLITE}test_it_waits_for_all_of_its_conditions",),
    ),
    Mutant(
        "flows: suspended jobs are ready (SQLite)",
        "backends/sqlite/*.sql",
        "WHERE $seq > ?1 AND $due <= ?2 AND json_extract($options, '$$.conditions') IS NULL;",
        "WHERE $seq > ?1 AND $due <= ?2;",
        (f"{SQLITE}test_a_job_with_a_condition_is_suspended",),
    ),
    Mutant(
        "flows: completions in bulk end no member (SQLite)",
        "backends/sqlite/*.py",
        "if $db.has_flows:\n        note_ended_jobs($db, $completed, $states.COMPLETED)",
        "if False:\n        note_ended_jobs($db, $completed, $states.COMPLETED)",
        (f"{SQLITE}test_the_step_that_ends_the_source_can_reserve_it",),
    ),
    Mutant(
        "flows: the end of a flow is found only when all members are read (SQLite)",
        "backends/sqlite/*.sql",
        "OR $f.unfinished = 0 OR $f.failed + $f.cancelled > $f.max_failed",
        "OR $f.failed + $f.cancelled > $f.max_failed",
        (f"{SQLITE}test_a_flow_that_has_ended_counts",),
    ),
)
