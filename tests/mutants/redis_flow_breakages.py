"""Breakages of flows in the scripts of Redis."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

REDIS = "tests/contract/test_redis.py::TestRedis::"
SCRIPTS = "backends/redis/*.lua"

REDIS_FLOW_MUTANTS = (
    Mutant(
        "Redis: a plain exchange settles a member",
        SCRIPTS,
        "  if $settlements ~= '' and read_settled($settlements) and not settles_members then",
        "  if $settlements ~= '' and read_settled($settlements) and false then",
        (f"{REDIS}test_it_waits_for_all_of_its_conditions",),
    ),
    Mutant(
        "Redis: a cancelled member does not count",
        SCRIPTS,
        "$answer = cancel_job($field, redis.call('HGET', job_key, $field))\nwrite_buffer()\nresolve_flows()",
        "$answer = cancel_job($field, redis.call('HGET', job_key, $field))\nwrite_buffer()",
        (f"{REDIS}test_it_can_be_cancelled",),
    ),
    Mutant(
        "Redis: a rescued member does not count",
        SCRIPTS,
        "write_buffer()\nmore = continue_flows() or more\nwrite_lane_counts()\nnotify_marked()\nreturn { returned",
        "write_buffer()\nwrite_lane_counts()\nnotify_marked()\nreturn { returned",
        (f"{REDIS}test_a_failing_end",),
    ),
    Mutant(
        "Redis: a resumed job keeps a due time that has passed",
        SCRIPTS,
        "  if decode_time($due, 1) < now then\n    $due = now8\n  end",
        "",
        (f"{REDIS}test_it_is_due_when_it_is_resumed",),
    ),
    Mutant(
        "Redis: a job waits for the first of its conditions only",
        SCRIPTS,
        "      if $numbers.total == 0 then\n        push($ready, $waiter.field)\n      end",
        "      push($ready, $waiter.field)",
        (f"{REDIS}test_it_waits_for_all_of_its_conditions",),
    ),
    Mutant(
        "Redis: what a script has left comes after its own changes",
        SCRIPTS,
        "join_changes(take_changes(), $changes)",
        "join_changes($changes, take_changes())",
        (f"{REDIS}test_a_replay_comes_after_what_earlier_steps_have_left",),
    ),
    Mutant(
        "Redis: a script forgets what it has left",
        SCRIPTS,
        "  put_changes($changes)\n",
        "",
        (f"{REDIS}test_more_than_one_step_resumes",),
    ),
    Mutant(
        "Redis: a promotion does not continue the changes of flows",
        "backends/redis/consuming.py",
        'if $has_changes:\n            $due = await self.$server.run_script("continue_flows", b"")',
        "if False:\n            pass",
        (f"{REDIS}test_more_than_one_step_resumes",),
    ),
    Mutant(
        "Redis: a job with two impossible conditions is reopened by one replay",
        SCRIPTS,
        "if $body and $numbers.impossible == 0 and has_flag",
        "if $body and has_flag",
        (f"{REDIS}test_a_job_with_two_failed_sources_waits_for_both_replays",),
    ),
    Mutant(
        "Redis: a flow that has ended gets members",
        SCRIPTS,
        "local $ended = find_ended_flow()",
        "local $ended = nil",
        (f"{REDIS}test_a_flow_that_has_ended_gets_no_members",),
    ),
    Mutant(
        "Redis: a repeat counts an added member again",
        SCRIPTS,
        "local $member = $codes[$i] == CREATED and get_member(ARGV[$next_value + $i - 1])\n    if $member and $counts",
        "local $member = get_member(ARGV[$next_value + $i - 1])\n    if $member and $counts",
        (f"{REDIS}test_a_repeat_adds_nothing_twice",),
    ),
    Mutant(
        "Redis: the failure of a flow meets what must not fail",
        SCRIPTS,
        "  if $on == FAILS_FAST then\n    return $transition == SUCCEEDED\n  end\n",
        "",
        (f"{REDIS}test_pending_and_retrying_members",),
    ),
    Mutant(
        "Redis: a member that waits again stays suspended",
        SCRIPTS,
        "suspend_again($field, $body, $numbers.total > 0)",
        "suspend_again($field, $body, true)",
        (f"{REDIS}test_members_wait_again",),
    ),
    Mutant(
        "Redis: a flow that is stored twice counts its group twice",
        SCRIPTS,
        "    if redis.call('HEXISTS', flow_key, $id) == 0 then",
        "    if true then",
        (f"{REDIS}test_a_repeated_flow_changes_nothing",),
    ),
    Mutant(
        "Redis: a source that ended before is not looked up",
        SCRIPTS,
        "    if $transition then\n      note_condition($source, $transition)\n    end",
        "",
        (f"{REDIS}test_a_source_that_has_failed_counts",),
    ),
    Mutant(
        "Redis: members are pruned while their flow runs again",
        SCRIPTS,
        "  if redis.call('EXISTS', running_flow_key) == 0 then\n    return $fields\n  end",
        "  if true then\n    return $fields\n  end",
        (f"{REDIS}test_a_member_stays_while_its_flow_runs_again",),
    ),
    Mutant(
        "Redis: the ended members of a flow are kept for ever",
        SCRIPTS,
        "    if not $flow or $flow.unfinished == 0 then\n      release_flow($id)\n    end",
        "",
        (f"{REDIS}test_a_member_stays_while_its_flow_runs",),
    ),
    Mutant(
        "Redis: a flow is pruned without its groups",
        SCRIPTS,
        "      if dropped == 500 or not drop_flow(sub($member, #$first + 9)) then\n        return false\n      end",
        "",
        (f"{REDIS}test_flows_stay_as_long_as_dead_letters",),
    ),
    Mutant(
        "Redis: a repeat runs the pruned members of a flow that has ended",
        SCRIPTS,
        "    elseif $past and $past[$i] then\n      $code = EXISTS\n",
        "",
        (f"{REDIS}test_a_repeat_after_the_members_were_pruned",),
    ),
)
