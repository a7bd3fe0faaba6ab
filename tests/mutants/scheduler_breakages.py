"""One-line breakages of the scheduler, and for each the test that must see it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SCHEDULER = "tests/scheduler/test_scheduler.py::"
TIMING = "tests/scheduler/test_backend_clock.py::"
EXPRESSIONS = "tests/scheduler/test_cron.py::"
ZONES = "tests/scheduler/test_timezones.py::"
WORKER = "tests/cli/test_scheduling_worker.py::"
ON_MEMORY = ("-k", "memory")

SCHEDULER_MUTANTS = (
    # One job per tick
    Mutant(
        "the id of a tick's job is not that of the tick",
        "scheduler/*.py",
        "        $id=$job_id($name, $tick),\n",
        "",
        (f"{SCHEDULER}test_arguments_may_be_computed_from_the_nominal_time", *ON_MEMORY),
    ),
    Mutant(
        "a job runs before its tick",
        "scheduler/*.py",
        "        $at=$tick + $spread($name, $tick, $jitter),\n",
        "",
        (f"{SCHEDULER}test_jitter_is_the_same_on_every_scheduler_and_only_later", *ON_MEMORY),
    ),
    Mutant(
        "who lost rests",
        "scheduler/*.py",
        "        $entry.$decide($tick, $guessed=True)\n",
        "        $entry.rest() if was_guessed else $entry.$decide($tick, $guessed=True)\n",
        (
            f"{SCHEDULER}test_who_was_always_second_is_first_when_the_first_is_gone",
            *ON_MEMORY,
        ),
    ),
    Mutant(
        "who is far behind loses each tick",
        "scheduler/*.py",
        "            $entry.$rest()\n            self.$behind = True",
        "            pass",
        (f"{SCHEDULER}test_a_scheduler_far_behind_reads_which_ticks_were_fired", *ON_MEMORY),
    ),
    Mutant(
        "who is far behind looks at leisure",
        "scheduler/*.py",
        "        if self.$_firing.$behind:",
        "        if self.$_firing.$behind is None:",
        (f"{SCHEDULER}test_a_scheduler_far_behind_reads_which_ticks_were_fired", *ON_MEMORY),
    ),
    Mutant(
        "the sixty-fifth tick is lost",
        "scheduler/*.py",
        "for $_, $entry in zip(range($most), $due, $strict=False)",
        "for $entry, $_ in zip($due, range($most), $strict=False)",
        (f"{SCHEDULER}test_many_that_are_due_at_once_are_all_decided_at_once", *ON_MEMORY),
    ),
    Mutant(
        "one that cannot be computed stops all",
        "scheduler/*.py",
        "        except $Exception as $error:  # $noqa: $BLE001 ($one $schedule $must not $stop $the $others)",
        "        except OSError as $error:",
        (f"{SCHEDULER}test_one_that_cannot_be_computed_does_not_stop_the_others", *ON_MEMORY),
    ),
    Mutant(
        "a middleware that fails late loses the tick",
        "scheduler/*.py",
        "            if not $answers:\n                self.$_report($entry, $tick, $error)",
        "            if True:\n                self.$_report($entry, $tick, $error)",
        (
            f"{SCHEDULER}test_a_middleware_that_fails_after_the_job_was_stored_loses_no_tick",
            *ON_MEMORY,
        ),
    ),
    # Missed ticks
    Mutant(
        "a new schedule makes up for the past",
        "scheduler/*.py",
        "max($record.$last_tick or 0.0, self.$spec.$since, self.$passed_over)",
        "max($record.$last_tick or 0.0, self.$spec.$since - 3600, self.$passed_over)",
        (f"{SCHEDULER}test_a_new_schedule_makes_up_for_nothing", *ON_MEMORY),
    ),
    Mutant(
        "a changed schedule replays",
        "scheduler/*.py",
        "max($record.$last_tick or 0.0, self.$spec.$since, self.$passed_over)",
        "max($record.$last_tick or self.$spec.$since, self.$passed_over)",
        (f"{SCHEDULER}test_a_changed_schedule_replays_nothing", *ON_MEMORY),
    ),
    Mutant(
        "skip fires what was missed",
        "scheduler/*.py",
        'if $spec.$misfire == "fire_once" and $base < $missed_until:',
        "if $base < $missed_until:",
        (f"{SCHEDULER}test_skip_passes_by_what_was_missed", *ON_MEMORY),
    ),
    Mutant(
        "fire_once fires the first that was missed",
        "scheduler/*.py",
        "$missed = $table.$latest($base, missed_until)",
        "$missed = $table.after($base)",
        (f"{SCHEDULER}test_fire_once_fires_the_latest_that_was_missed", *ON_MEMORY),
    ),
    Mutant(
        "catch_up knows no window",
        "scheduler/*.py",
        "$begin = max($base, $now - max($spec.$grace, $spec.$window))",
        "$begin = $base",
        (f"{SCHEDULER}test_catch_up_goes_back_as_far_as_its_window", *ON_MEMORY),
    ),
    Mutant(
        "no tick is missed by its grace",
        "scheduler/*.py",
        "$missed_until = max($base, $now - $spec.$grace)",
        "$missed_until = max($base, $now)",
        (f"{SCHEDULER}test_what_is_at_most_a_minute_late_is_fired_by_every_policy", *ON_MEMORY),
    ),
    Mutant(
        "a pause is made up for",
        "scheduler/*.py",
        "$spec=await self.$_from_now($spec_of($record.$spec))",
        "$spec=$record.$spec",
        (f"{SCHEDULER}test_a_pause_is_not_made_up_for", *ON_MEMORY),
    ),
    # Bounds
    Mutant(
        "the end ticks too",
        "scheduler/*.py",
        "$tick >= self.$end",
        "$tick > self.$end",
        (f"{EXPRESSIONS}test_a_timetable_begins_and_ends",),
    ),
    Mutant(
        "the start does not tick",
        "scheduler/*.py",
        "$whole = max($whole, self.$start - 1)",
        "$whole = max($whole, self.$start)",
        (f"{EXPRESSIONS}test_a_timetable_begins_and_ends",),
    ),
    # Whose they are
    Mutant(
        "what nobody declares is fired",
        "scheduler/*.py",
        "if $record.$owner != self.$processor.$settings.$owner:\n            return False",
        "if $record.$owner != self.$processor.$settings.$owner:\n            return True",
        (f"{SCHEDULER}test_an_undeclared_schedule_is_suspended_and_kept_for_30_days", *ON_MEMORY),
    ),
    Mutant(
        "what nobody declares is deleted at once",
        "scheduler/*.py",
        "return $spec.$declared_until < $now - $KEPT",
        "return $spec.$declared_until < $now",
        (f"{SCHEDULER}test_an_undeclared_schedule_is_suspended_and_kept_for_30_days", *ON_MEMORY),
    ),
    Mutant(
        "an old process undoes the newest declaration",
        "scheduler/*.py",
        "return $own.$name not in self.$_said and $kept.$get_declaration() != $own.$spec",
        "return $kept.$get_declaration() != $own.$spec",
        (f"{SCHEDULER}test_the_newest_declaration_counts", *ON_MEMORY),
    ),
    Mutant(
        "ten thousand are registered again at once",
        "scheduler/registration.py",
        "$again[:$_AGAIN_AT_ONCE]",
        "$again",
        (f"{SCHEDULER}test_many_schedules_are_registered_a_few_at_a_time", *ON_MEMORY),
    ),
    Mutant(
        "another application's name is taken over",
        "scheduler/*.py",
        '$taken = $kept.$owner not in {"", self.$_owner} and ($spec.$declared_until or 0.0) > $now',
        "$taken = False",
        (f"{SCHEDULER}test_two_applications_do_not_share_a_name", *ON_MEMORY),
    ),
    Mutant(
        "a scheduler is not to be switched off",
        "scheduler/*.py",
        "if not settings.enabled:\n",
        "if not settings:\n",
        (f"{WORKER}test_none_runs_where_it_is_switched_off",),
    ),
    # Clocks
    Mutant(
        "the clock of the host is used",
        "scheduler/*.py",
        "if abs($off) <= max($noteworthy, $took / 2):",
        "if abs($off) <= 10_000:",
        (f"{TIMING}test_one_that_is_off_does_the_others_no_harm", *ON_MEMORY),
    ),
    Mutant(
        "a clock that is set is not noticed",
        "scheduler/*.py",
        "return abs(self.$_clock.$now() - $now - self.$_host_offset) > $_max_change",
        "return False",
        (
            f"{TIMING}test_the_scheduler_follows_a_host_clock_that_is_set_with_its_backend",
            *ON_MEMORY,
        ),
    ),
    Mutant(
        "the backend is asked for its time once",
        "scheduler/*.py",
        "if self.$_learned is None or $now - self.$_learned >= $_EACH:",
        "if self.$_learned is None:",
        (f"{TIMING}test_the_scheduler_follows_a_backend_clock_that_is_set", *ON_MEMORY),
    ),
    Mutant(
        "the way there takes no time",
        "scheduler/*.py",
        "$off = $told - ($sent[0] + $took / 2) if $told else 0.0",
        "$off = $told - $sent[0] if $told else 0.0",
        (f"{TIMING}test_half_of_the_round_trip_is_the_way_there",),
    ),
    Mutant(
        "a skipped time is lost",
        "scheduler/*.py",
        "    return ($_change($zone, $second, $first),) if $expression.$fixed else ()  # $skipped",
        "    return ()",
        (f"{ZONES}test_a_time_that_is_skipped_runs_once_right_after_the_gap",),
    ),
    Mutant(
        "a time that comes twice runs twice",
        "scheduler/*.py",
        "return ($first,) if $expression.$fixed else ($first, $second)",
        "return ($first, $second)",
        (f"{ZONES}test_a_time_that_comes_twice_runs_at_the_first",),
    ),
    Mutant(
        "real time that comes twice runs once",
        "scheduler/*.py",
        "return ($first,) if $expression.$fixed else ($first, $second)",
        "return ($first,)",
        (f"{ZONES}test_a_star_follows_real_time",),
    ),
    Mutant(
        "a change of clocks right ahead is not seen",
        "scheduler/*.py",
        "if not $then.$fold and $then.$utcoffset() == $offset:",
        "if not $then.$fold:",
        (f"{ZONES}test_a_time_that_is_skipped_runs_once_right_after_the_gap",),
    ),
    # Expressions
    Mutant(
        "day of month and day of week: either, always",
        "scheduler/*.py",
        "return $in_month and $in_week if self.$_both else $in_month or $in_week",
        "return $in_month or $in_week",
        (f"{EXPRESSIONS}test_the_first_tick_after_a_monday",),
    ),
    Mutant(
        "what never comes true is declared",
        "scheduler/*.py",
        "for $year in $_EVERY_CALENDAR for $month in self.$_months\n        ):",
        "for $year in $_EVERY_CALENDAR for $month in self.$_months\n        ) and not self.$_months:",
        (f"{EXPRESSIONS}test_what_is_refused_points_at_the_field",),
    ),
    Mutant(
        "a leap day on a Monday is not waited for",
        "scheduler/*.py",
        "$_MONTHS_AHEAD = 12 * 41",
        "$_MONTHS_AHEAD = 12 * 8",
        (f"{EXPRESSIONS}test_the_first_tick_after_a_monday",),
    ),
)
