"""Breakages of the engine of durable functions: steps, waits, children, and undo."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

ENGINE = "jobs/durable/*.py"
TESTS = "tests/jobs/durable/"

DURABLE_MUTANTS = (
    # Steps
    Mutant(
        "durable: a stored step runs again",
        ENGINE,
        "if stored is not None:\n            return _replay(run, call, stored, digest)\n    # Here",
        "pass\n    # Here",
        (
            f"{TESTS}test_steps.py::test_a_step_is_called_once_and_its_value_has_its_type_in_each_attempt",
        ),
    ),
    Mutant(
        "durable: a timeout does not bound a transaction",
        ENGINE,
        "value = await _limit_time(call, value)",
        "value = await value",
        (f"{TESTS}test_transactions.py::test_a_timeout_rolls_the_rows_back",),
    ),
    Mutant(
        "durable: a caught error is not stored before a transaction",
        ENGINE,
        "sent = recorder.send_caught()\n        if sent is not None:",
        "sent = None\n        if sent is not None:",
        (
            f"{TESTS}test_transactions.py::test_an_error_that_was_caught_before_a_transaction_is_stored_before_it",
        ),
    ),
    Mutant(
        "durable: the error that ended an attempt is kept",
        ENGINE,
        "self._send(ForgottenEntry(found.entry.key, get_kind(found.entry)))",
        "pass",
        (
            f"{TESTS}test_steps.py::test_an_error_that_was_caught_and_then_ends_the_attempt_is_forgotten",
        ),
    ),
    Mutant(
        "durable: a key is used twice",
        ENGINE,
        "if first is not place:",
        "if False:",
        (f"{TESTS}test_steps.py::test_a_key_that_is_used_twice_names_both_places",),
    ),
    # Waits
    Mutant(
        "durable: a signal that came too late ends a wait",
        ENGINE,
        "if unread is not None and unread.at <= _find_end(timer):",
        "if unread is not None:",
        (
            f"{TESTS}test_waits.py::test_a_wait_that_times_out_stays_so_and_a_late_signal_waits_for_the_next",
        ),
    ),
    Mutant(
        "durable: a signal that came too late is the first",
        ENGINE,
        "if first is not None and arrivals[first][0] <= _find_end(timer):",
        "if first is not None:",
        (f"{TESTS}test_wait_any.py::test_nothing_comes_in_time_and_a_late_signal_changes_nothing",),
    ),
    Mutant(
        "durable: the first source of the arguments wins",
        ENGINE,
        "first = min(arrivals, key=arrivals.__getitem__, default=None)",
        "first = min(arrivals, default=None)",
        (
            f"{TESTS}test_wait_any.py::test_the_first_signal_ends_the_wait_and_is_there_for_the_next",
        ),
    ),
    Mutant(
        "durable: the first source is looked for again in each attempt",
        ENGINE,
        'return _find_stored(sources, cast("SignalEntry", known.entry), place)',
        "return sources[0]",
        (f"{TESTS}test_wait_any.py::test_the_first_is_the_same_in_each_attempt",),
    ),
    Mutant(
        "durable: a child that is not kept never comes",
        ENGINE,
        "if record is None or record.state.finished:",
        "if record is not None and record.state.finished:",
        (f"{TESTS}test_wait_any.py::test_a_child_that_is_not_kept_has_come",),
    ),
    Mutant(
        "durable: a timeout that is over is not stored",
        ENGINE,
        "await run.record_entry(SignalEntry(key, timed_out=True))",
        "pass",
        (
            f"{TESTS}test_wait_any.py::test_a_run_whose_worker_is_lost_at_any_point",
            f"{TESTS}test_run.py::test_a_run_whose_worker_is_lost_at_any_point_has_the_same_result",
        ),
    ),
    # Children
    Mutant(
        "durable: detached children are cancelled with their run",
        ENGINE,
        "if isinstance(one, ChildrenEntry) and not one.detached and one.key not in ended",
        "if isinstance(one, ChildrenEntry) and one.key not in ended",
        (f"{TESTS}test_children.py::test_detached_children_continue_when_the_run_is_cancelled",),
    ),
    Mutant(
        "durable: a run with detached children needs a worker to be cancelled",
        ENGINE,
        "if not detached:\n            run.recorder.require_cleanup()",
        "if True:\n            run.recorder.require_cleanup()",
        (f"{TESTS}test_children.py::test_detached_children_continue_when_the_run_is_cancelled",),
    ),
    Mutant(
        "durable: the children of a cancelled run continue",
        ENGINE,
        "if isinstance(settlement, Cancelled):\n        await cancel_children(run)",
        "pass",
        (f"{TESTS}test_children.py::test_cancelling_a_run_cancels_its_children",),
    ),
    # Ends
    Mutant(
        "durable: undos are called in the order of their registration",
        ENGINE,
        "return ordered[::-1]",
        "return ordered",
        (f"{TESTS}test_cleanup.py::test_a_run_that_fails_for_good_is_undone_in_reverse_order",),
    ),
    Mutant(
        "durable: a drain waits for ever for a backend that does not answer",
        "jobs/worker/inline.py",
        "if unanswered == _MAX_UNANSWERED:",
        "if False:",
        (f"{TESTS}test_worker.py::test_a_drain_ends_although_the_backend_never_answers",),
    ),
    Mutant(
        "durable: a Job class forgets its steps",
        "jobs/declaration/*.py",
        "is_durable=takes_durable_context(function, 0 if isinstance(job, JobFunction) else 1),",
        "is_durable=takes_durable_context(function, 0),",
        (f"{TESTS}test_job_classes.py::test_a_job_class_remembers_its_steps",),
    ),
)
