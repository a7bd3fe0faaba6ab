"""Breakages of durable runs: steps, waits, signals, and cancels."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MEMORY = "tests/contract/test_memory.py::TestMemory::"
MEMORY_FILES = "backends/memory/*.py"
PLANNER = "backends/planning/*.py"
EXPLANATIONS = "tests/core/diagnosis/test_explanations.py::"

RUN_MUTANTS = (
    # Steps
    Mutant(
        "runs: a repeated number replaces the step",
        MEMORY_FILES,
        "if $recorded.number in self.$steps.get($job_id, ()):",
        "if False:",
        (f"{MEMORY}test_a_number_is_stored_once",),
    ),
    Mutant(
        "runs: a run that begins anew keeps its steps",
        MEMORY_FILES,
        "if $recorded.forgets:",
        "if False:",
        (f"{MEMORY}test_a_run_begins_anew",),
    ),
    Mutant(
        "runs: a step takes no signal",
        MEMORY_FILES,
        "if $entry.signal.number == $recorded.takes:",
        "if False:",
        (f"{MEMORY}test_a_step_takes_a_signal",),
    ),
    Mutant(
        "runs: a step takes all signals",
        MEMORY_FILES,
        "if $entry.signal.number == $recorded.takes:",
        "if $recorded.takes:",
        (f"{MEMORY}test_a_step_takes_a_signal",),
    ),
    Mutant(
        "runs: the cleanup step resets the failures",
        MEMORY_FILES,
        "if self.$state.$tables.record($report, self.$now) and $report.number != CLEANUP_STEP:",
        "if self.$state.$tables.record($report, self.$now):",
        (f"{MEMORY}test_a_new_step_resets_failures_and_losses",),
    ),
    Mutant(
        "runs: a repeated step resets the failures",
        MEMORY_FILES,
        "if self.$state.$tables.record($report, self.$now) and $report.number != CLEANUP_STEP:",
        "self.$state.$tables.record($report, self.$now)\n            if $report.number != 0:",
        (f"{MEMORY}test_a_repeated_step_resets_nothing",),
    ),
    Mutant(
        "runs: the steps of a deleted job are found by the next one",
        MEMORY_FILES,
        "self.run_tables.remove($entry.id)",
        "pass",
        (f"{MEMORY}test_a_deleted_job_leaves_nothing",),
    ),
    Mutant(
        "runs: the signals of a deleted job are found by the next one",
        MEMORY_FILES,
        "self.signals.pop($job_id, None)",
        "pass",
        (f"{MEMORY}test_a_deleted_job_leaves_nothing",),
    ),
    # Signals
    Mutant(
        "runs: a signal resumes no run",
        MEMORY_FILES,
        "self.get_flow_changes().note_signal($source)",
        "pass",
        (f"{MEMORY}test_a_signal_resumes_the_run_that_waits_for_it",),
    ),
    Mutant(
        "runs: a signal before the wait is missed",
        PLANNER,
        "$is_met = self.$data.has_signal($source)",
        "$is_met = False",
        (f"{MEMORY}test_one_that_came_before_the_wait",),
    ),
    Mutant(
        "runs: a signal that was taken is found again",
        MEMORY_FILES,
        "return [$one.signal for $one in self.$signals.get($job_id, {}).values() if $one.is_unread]",
        "return [one.signal for one in self.$signals.get($job_id, {}).values()]",
        (f"{MEMORY}test_one_that_was_taken_resumes_nothing",),
    ),
    Mutant(
        "runs: any signal is met by any other",
        MEMORY_FILES,
        "return any($signal.name == $name for $signal in self.list_unread($job_id))",
        "return bool(self.list_unread($job_id))",
        (f"{MEMORY}test_another_name_before_the_wait_resumes_nothing",),
    ),
    Mutant(
        "runs: one signal more is stored",
        PLANNER,
        "if $unread < MAX_UNREAD_SIGNALS else",
        "if $unread <= MAX_UNREAD_SIGNALS else",
        (f"{MEMORY}test_a_job_has_a_bounded_number_of_unread_ones",),
    ),
    Mutant(
        "runs: a job that has ended gets signals",
        PLANNER,
        "if $state.finished:\n        return $outcomes.FINISHED",
        "if False:\n        return $outcomes.FINISHED",
        (f"{MEMORY}test_an_unknown_and_a_finished_job",),
    ),
    # Waits
    Mutant(
        "runs: the other sources of a resumed run stay",
        MEMORY_FILES,
        "if $waiter.on is $kinds.ANY:\n                self.$data.remove_alternatives($waiter.job_id)",
        "pass",
        (f"{MEMORY}test_a_signal_before_the_time",),
    ),
    Mutant(
        "runs: a flow that is certain to fail has ended",
        MEMORY_FILES,
        "$entry.on in {$kinds.FINISHED, $kinds.ANY})",
        "$entry.on is $kinds.FINISHED)",
        (f"{MEMORY}test_a_flow_that_is_certain_to_fail_has_not_ended",),
    ),
    Mutant(
        "runs: an unknown flow never ends",
        PLANNER,
        "$is_met = $flow is None or not $flow.unfinished",
        "$is_met = $flow is not None and not $flow.unfinished",
        (f"{MEMORY}test_one_that_is_unknown",),
    ),
    Mutant(
        "runs: a flow must succeed to resume a run",
        PLANNER,
        "if $on is $kinds.FINISHED or $on is $kinds.ANY:\n        return True",
        "if $on is $kinds.FINISHED:\n        return True",
        (f"{MEMORY}test_the_end_of_a_flow_resumes_it",),
    ),
    Mutant(
        "runs: a run is resumed a second late",
        MEMORY_FILES,
        "$last = make_time_source(self.$step.now)",
        "$last = make_time_source(self.$step.now - 1)",
        (f"{MEMORY}test_it_is_resumed_at_its_time",),
    ),
    Mutant(
        "runs: a run sleeps for ever",
        PLANNER,
        "return (*$suspended.sources, make_time_source($due))",
        "return $suspended.sources",
        (f"{MEMORY}test_it_is_resumed_at_its_time",),
    ),
    Mutant(
        "runs: the reply does not name the end of a sleep",
        MEMORY_FILES,
        "if $due is None or ($time is not None and $time < $due):",
        "if False:",
        (f"{MEMORY}test_the_reply_names_the_time",),
    ),
    Mutant(
        "runs: one step resumes all whose time has come",
        PLANNER,
        "$due = self.$data.list_due(self.$left)",
        "$due = self.$data.list_due(1_000_000)",
        (f"{MEMORY}test_more_times_than_one_step_resumes",),
    ),
    Mutant(
        "runs: a delay that is no time is stored",
        MEMORY_FILES,
        "_DELAYED = (Retried, Released, Suspended)",
        "_DELAYED = (Retried, Released)",
        (f"{MEMORY}test_a_delay_that_is_no_time_applies_nothing",),
    ),
    Mutant(
        "runs: a branch continues before its signal is taken",
        "jobs/durable/waits.py",
        "if $run.has_branches():\n            await $run.await_stored($sent)",
        "if False:\n            await $run.await_stored($sent)",
        ("tests/jobs/durable/test_worker.py::test_a_branch_takes_its_signal_before_it_continues",),
    ),
    Mutant(
        "runs: the next steps do not wait for those that were answered",
        "jobs/worker/worker.py",
        "if self.$session.completer.has_answered:",
        "if False:",
        ("tests/jobs/durable/test_worker.py::test_runs_that_began_apart_share_exchanges_later",),
    ),
    # Cancels
    Mutant(
        "runs: a run that needs cleanup is cancelled at once",
        MEMORY_FILES,
        "if self.$state.run_tables.needs_cleanup($job_id):\n            self.send_cancel($entry)",
        "if False:\n            self.send_cancel($entry)",
        (f"{MEMORY}test_one_that_needs_cleanup_is_resumed",),
    ),
    Mutant(
        "runs: a request leaves the run suspended",
        MEMORY_FILES,
        "if $entry.is_suspended:\n            self.$state.flow_tables.remove_alternatives($entry.id)\n",
        "if False:\n            self.$state.flow_tables.remove_alternatives($entry.id)\n",
        (f"{MEMORY}test_one_that_needs_cleanup_is_resumed",),
    ),
    Mutant(
        "runs: a request leaves what the run waited for",
        MEMORY_FILES,
        "self.$state.flow_tables.remove_alternatives($entry.id)\n            self.$resume($entry)",
        "self.$resume($entry)",
        (f"{MEMORY}test_what_it_waited_for_before_the_request_resumes_nothing",),
    ),
    Mutant(
        "runs: a second request is a second signal",
        MEMORY_FILES,
        "if CANCEL_SIGNAL not in self.$signals.get($job_id, {}):",
        "if True:",
        (f"{MEMORY}test_a_second_request_resumes_it_again",),
    ),
    Mutant(
        "runs: a run that was asked to end waits for its next time",
        PLANNER,
        "return msgspec.structs.replace($effect, due=None, sources=None, sends_cancel=True)",
        "return msgspec.structs.replace($effect, sources=None, sends_cancel=True)",
        (f"{MEMORY}test_a_request_to_a_run_that_gives_its_lease_back",),
    ),
    Mutant(
        "runs: a run that was asked to end waits for its sources",
        PLANNER,
        "return msgspec.structs.replace($effect, due=None, sources=None, sends_cancel=True)",
        "return msgspec.structs.replace($effect, due=None, sends_cancel=True)",
        (f"{MEMORY}test_a_request_to_a_run_that_gives_its_lease_back", "-k", "suspended"),
    ),
    Mutant(
        "runs: the suspension of a cancelled run does not end it",
        PLANNER,
        "$effect, state=$states.CANCELLED, due=None, sources=None, keeps_payload=False",
        "$effect, state=$states.CANCELLED, due=None, keeps_payload=False",
        (f"{MEMORY}test_a_request_to_one_that_needs_no_cleanup_cancels_it", "-k", "suspended"),
    ),
    Mutant(
        "runs: a request keeps a lost run from failing",
        PLANNER,
        "$is_cancelled = $lease.cancel_requested and not $lease.needs_cleanup",
        "$is_cancelled = $lease.cancel_requested",
        (f"{MEMORY}test_a_request_does_not_keep_a_lost_run_from_failing",),
    ),
    Mutant(
        "runs: a flow that fails fast ends a run that needs cleanup",
        MEMORY_FILES,
        "if self.$step.state.run_tables.needs_cleanup($entry.id):",
        "if False:",
        (f"{MEMORY}test_a_flow_that_fails_fast_asks_its_members",),
    ),
    # Reads
    Mutant(
        "runs: a page has no bound in bytes",
        PLANNER,
        "sum($total <= RUN_PAGE_BYTES for $total in $totals)",
        "len(sizes)",
        (f"{MEMORY}test_a_page_is_bounded_in_bytes",),
    ),
    Mutant(
        "runs: a page has no bound in number",
        PLANNER,
        "$count = _count_fitting($sizes[:$limit])",
        "$count = _count_fitting($sizes)",
        (f"{MEMORY}test_a_page_begins_where_the_last_one_ended",),
    ),
    Mutant(
        "runs: the pages of signals begin again with the steps",
        PLANNER,
        "$last = $steps[-1].number if $steps else $cursor.step",
        "$last = $steps[-1].number if $steps else -1",
        (f"{MEMORY}test_a_page_begins_where_the_last_one_ended",),
    ),
    Mutant(
        "runs: why knows no other sources",
        "core/diagnosis/*.py",
        "*$first, $last = [*$waits, $others] if $others else $waits",
        "*$first, $last = $waits",
        (f"{EXPLANATIONS}test_other_sources_are_counted",),
    ),
)
