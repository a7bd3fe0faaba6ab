"""Breakages of the Redis backend's scripts."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

REDIS = "tests/contract/test_redis.py::TestRedis::"
LONG_POLL = "tests/backends/redis/test_long_poll.py::"
CLOCKS = "tests/backends/redis/test_clocks.py"
LUA = "backends/redis/lua/"

REDIS_MUTANTS = (
    # Tokens
    Mutant(
        "Redis: token compare dropped (settle)",
        "backends/redis/*.lua",
        "$lease.session4 ~= $session4 or get_token($lease) ~= $token",
        "$lease.session4 ~= $session4",
        (f"{REDIS}test_a_settlement_writes_only_under_its_whole_token", "-k", "counter"),
    ),
    Mutant(
        "Redis: token compare dropped (progress)",
        "backends/redis/*.lua",
        "$lease.session4 ~= $session4 or get_token($lease) ~= $token",
        "kind ~= KIND_PROGRESSED and ($lease.session4 ~= $session4 or get_token($lease) ~= $token)",
        (f"{REDIS}test_a_settlement_writes_only_under_its_whole_token", "-k", "Progressed"),
    ),
    Mutant(
        "Redis: random half of the token ignored",
        "backends/redis/*.lua",
        "$lease.session4 ~= $session4 or get_token($lease) ~= $token",
        "$lease.session4 ~= $session4 or $lease.fence4 ~= string.sub($token, 1, 4)",
        (f"{REDIS}test_a_settlement_writes_only_under_its_whole_token", "-k", "half"),
    ),
    Mutant(
        "Redis: session compare dropped",
        "backends/redis/*.lua",
        "$lease.session4 ~= $session4 or get_token($lease) ~= $token",
        "get_token($lease) ~= $token",
        (f"{REDIS}test_a_settlement_writes_only_under_its_whole_token", "-k", "another"),
    ),
    Mutant(
        "Redis: fence does not rise",
        "backends/redis/*.lua",
        "unpack_struct('>I4', $attempts.fence4) + 1)",
        "unpack_struct('>I4', $attempts.fence4) + 0)",
        (f"{REDIS}test_the_fence_rises_with_every_delivery_of_a_job",),
    ),
    Mutant(
        "Redis: a replay begins the fences anew",
        "backends/redis/*.lua",
        "  $attempts.counts = NO_COUNTS\n",
        "  $attempts.counts, $attempts.fence4 = NO_COUNTS, NO_FENCE\n",
        (f"{REDIS}test_a_replayed_job_is_fenced_from_its_old_token",),
    ),
    # Numbers
    Mutant(
        "Redis: a repeat reserves anew",
        "backends/redis/*.lua",
        "  $details, $bodies, $nonce = $repeat_leases()\n  $lanes = $find_open_lanes($request)\n",
        "  $lanes = $find_open_lanes($request)\n  $details, $bodies = lease_jobs(session4, number8, nonce, choose_jobs($lanes, $request), $lanes, $request.max_bytes)\n",
        (f"{REDIS}test_a_repeat_brings_the_same_deliveries",),
    ),
    Mutant(
        "Redis: a repeat settles anew",
        "backends/redis/*.lua",
        "  $codes = $session.codes",
        "  $codes = settle_all(session4, settlements, FIRST_EXTRA)",
        (f"{REDIS}test_a_repeat_brings_the_same_results",),
    ),
    Mutant(
        "Redis: any number accepted",
        "backends/redis/*.lua",
        "elseif (struct.unpack('>I8', $number8)) ~= (struct.unpack('>I8', $last8)) + 1 then",
        "elseif (struct.unpack('>I8', $number8)) == 0 then",
        (f"{REDIS}test_a_number_before_the_last_is_out_of_order",),
    ),
    # Sessions and rescue
    Mutant(
        "Redis: rescue without expiry check",
        "backends/redis/*.lua",
        "session_expiry_key, '-inf', $alive_now, 'LIMIT'",
        "session_expiry_key, '-inf', '+inf', 'LIMIT'",
        (f"{REDIS}test_a_live_session_is_left_alone",),
    ),
    Mutant(
        "Redis: a rescued session lives on",
        f"{LUA}operations/heartbeat.lua",
        "local session = read_open_session(redis.call('HGET', session_state_key, id))",
        "local state = redis.call('HGET', session_state_key, id)\nlocal session = state and read_session_state(state)",
        (f"{REDIS}test_a_rescued_session_never_lives_again",),
    ),
    Mutant(
        "Redis: what a bounded rescue left is forgotten",
        "backends/redis/*.lua",
        "  if $more then\n    break\n  end\n  push($drop_orphan, $orphan)",
        "  push($drop_orphan, $orphan)",
        (f"{REDIS}test_the_limit_holds_and_more_is_reported",),
    ),
    Mutant(
        "Redis: `lost` not counted",
        "backends/redis/*.lua",
        "lost = lost + 1",
        "lost = lost + 0",
        (f"{REDIS}test_a_loss_is_counted_apart_from_failures_and_added_to_the_history",),
    ),
    Mutant(
        "Redis: one loss too many allowed",
        "backends/redis/*.lua",
        "$lost >= max_lost",
        "$lost > max_lost",
        (f"{REDIS}test_the_last_loss_makes_a_dead_letter",),
    ),
    Mutant(
        "Redis: the expiry of a session that left counts as a loss",
        "backends/redis/*.lua",
        "$status ~= SESSION_LEFT and",
        "$status ~= SESSION_ENDED and",
        (f"{REDIS}test_the_expiry_of_a_session_that_left_counts_no_loss",),
    ),
    Mutant(
        "Redis: what still runs is released at the close",
        "backends/redis/*.lua",
        "if $running[$field .. get_token($lease)] then",
        "if $running[$field] then",
        (f"{REDIS}test_what_still_runs_stays_leased_and_the_session_has_left",),
    ),
    # Time
    Mutant(
        "Redis: promote before due",
        f"{LUA}shared/promote_due.lua",
        "'(' .. encode_time(now + 1)",
        "'(' .. encode_time(now + 3600000000)",
        (f"{REDIS}test_what_a_settlement_delays_is_never_early",),
    ),
    Mutant(
        "Redis: the time of the caller is used",
        "backends/redis/*.py",
        "        if self.$_given is None:\n            return",
        "        if (given := self._clock) is not None:\n            return micros(given.now()), micros(given.now())\n        if self.$_given is None:\n            return",
        (CLOCKS,),
    ),
    # Limits, caps, order
    Mutant(
        "Redis: limit off by one",
        "backends/redis/*.lua",
        "- get_net_change($name))",
        "- get_net_change($name) + 1)",
        (f"{REDIS}test_no_more_than_the_limit_in_one_reply",),
    ),
    Mutant(
        "Redis: rescue frees no place",
        f"{LUA}operations/rescue.lua",
        "write_buffer()\nwrite_lane_counts()",
        "write_buffer()",
        (f"{REDIS}test_rescue_gives_places_back",),
    ),
    Mutant(
        "Redis: a settled job frees its place one exchange late",
        "backends/redis/*.lua",
        "- get_net_change($name))",
        ")",
        (f"{REDIS}test_many_jobs_pass_a_concurrency_limit_in_order",),
    ),
    Mutant(
        "Redis: cap ignored",
        "backends/redis/*.lua",
        "if not ($cap and $cap <= 0) and not ($room and $room <= 0) then",
        "if not ($room and $room <= 0) then",
        (f"{REDIS}test_a_queue_cap_spans_the_lanes_of_the_queue",),
    ),
    Mutant(
        "Redis: ageing ignored",
        "backends/redis/*.lua",
        "if $ageing > 0 and $now > $due then",
        "if $ageing > 0 and $now < $due then",
        (f"{REDIS}test_a_head_ages_one_level_for_each_whole_span",),
    ),
    Mutant(
        "Redis: paused queue served",
        "backends/redis/*.lua",
        "not seen[$number] and not $pauses[$queue] then",
        "not seen[$number] then",
        (f"{REDIS}test_a_paused_queue_returns_no_jobs",),
    ),
    Mutant(
        "Redis: a pause outlasts its end",
        f"{LUA}shared/pauses.lua",
        "return decode_time($pause, 1) > now",
        "return true",
        (f"{REDIS}test_a_pause_ends_by_itself",),
    ),
    Mutant(
        "Redis: a pause ends late",
        f"{LUA}shared/pauses.lua",
        "return decode_time($pause, 1) > now",
        "return decode_time($pause, 1) >= now",
        (f"{REDIS}test_a_pause_ends_by_itself",),
    ),
    Mutant(
        "Redis: a finished job does not name the session that ended it",
        f"{LUA}formats/record_format.lua",
        "($attempts.session4 or NO_SESSION)",
        "NO_SESSION",
        (f"{REDIS}test_a_completed_attempt_names_its_session_and_host",),
    ),
    Mutant(
        "Redis: a search checks more jobs than its budget",
        f"{LUA}shared/scan_jobs.lua",
        "if $checked == budget then",
        "if $checked > budget then",
        (f"{REDIS}test_a_search_stops_at_its_budget_and_continues",),
    ),
    Mutant(
        "Redis: a replaced audit record gets a new time",
        f"{LUA}operations/put_audit.lua",
        "  time8 = string.sub(redis.call('HGET', audit_key, $number), 1, 8)",
        "  time8 = now8",
        (f"{REDIS}test_an_audit_record_is_replaced_and_keeps_its_time",),
    ),
    Mutant(
        "Redis: a limit that was full notifies nobody when it is free again",
        "backends/redis/*.lua",
        "          $mark_all()",
        "          mark(lane_of)",
        (f"{REDIS}test_wait_wakes_for",),
    ),
    # Unique keys, ids
    Mutant(
        "Redis: unique key freed too early",
        "backends/redis/*.lua",
        "      requeue($field, $lease, $lane, $delay8 and",
        "      if has_flag(body, FLAG_UNIQUE_KEY) then release_key(body, $lane.name) end\n      requeue($field, $lease, $lane, $delay8 and",
        (f"{REDIS}test_an_unfinished_job_keeps_its_key",),
    ),
    Mutant(
        "Redis: unique key not freed",
        "backends/redis/*.lua",
        "    $freed[$field] = true\n    return true",
        "    return true",
        (f"{REDIS}test_the_end_of_its_job_frees_the_key",),
    ),
    Mutant(
        "Redis: the end of an old holder frees the key of the new one",
        "backends/redis/*.lua",
        " == NEVER and $id == $get_id($body) then",
        " == NEVER then",
        (f"{REDIS}test_the_end_of_an_old_holder_frees_nothing_of_the_new_one",),
    ),
    Mutant(
        "Redis: another body accepted under a kept id",
        f"{LUA}operations/enqueue_one.lua",
        "and EXISTS or CONFLICT",
        "and EXISTS or EXISTS",
        (f"{REDIS}test_another_body_under_a_kept_id_is_a_conflict",),
    ),
    Mutant(
        "Redis: what stands beside a conflict is stored anyway",
        "backends/redis/*.lua",
        "$refused = $refused or $code == CONFLICT or $code == TAKEN",
        "$refused = $refused or $code == TAKEN",
        (f"{REDIS}test_one_conflict_refuses_the_whole_call",),
    ),
    # Operators and schedules
    Mutant(
        "Redis: a request to cancel is forgotten when the attempt ends",
        "backends/redis/*.lua",
        "    if $lease.is_cancel_requested then\n      finish_job($field, $body,",
        "    if false then\n      finish_job($field, $body,",
        (f"{REDIS}test_what_the_worker_settles_after_a_request",),
    ),
    Mutant(
        "Redis: a request to cancel is forgotten at the rescue",
        f"{LUA}shared/release_jobs.lua",
        "  if lease.is_cancel_requested then",
        "  if false then",
        (f"{REDIS}test_a_cancel_that_was_requested_ends_the_job",),
    ),
    Mutant(
        "Redis: a worker is asked to cancel what another holds",
        "backends/redis/*.lua",
        "if $lease and $lease.session4 == $session.session4 then",
        "if $lease then",
        (f"{REDIS}test_only_the_worker_that_holds_it_gets_the_cancel",),
    ),
    Mutant(
        "Redis: a tick is decided twice",
        "backends/redis/*.lua",
        " ~= expected_last then",
        " == '-' then",
        (f"{REDIS}test_a_tick_that_another_scheduler_fired_enqueues_nothing",),
    ),
    Mutant(
        "Redis: a payload that lies apart is dropped with its failure",
        f"{LUA}shared/write_buffer.lua",
        "  elseif band($flags, FLAG_LARGE_PAYLOAD) ~= 0 then",
        "  end\n  if band($flags, FLAG_LARGE_PAYLOAD) ~= 0 then",
        (f"{REDIS}test_the_payload_is_the_same_byte_for_byte",),
    ),
    # Waiting in an exchange
    Mutant(
        "Redis: an exchange waits without subscribing",
        "backends/redis/*.lua",
        "$request.waits_on_stream and $queue .. '\\0' or $queue",
        "$queue",
        (f"{LONG_POLL}test_a_job_ends_the_wait_whatever_its_queue_is_called",),
    ),
    Mutant(
        "Redis: a bulk call notifies another stream",
        "backends/redis/*.lua",
        "$RINGS[$sum % #$RINGS + 1]",
        "$RINGS[($sum + 1) % #$RINGS + 1]",
        (f"{LONG_POLL}test_a_job_ends_the_wait_whatever_its_queue_is_called",),
    ),
    Mutant(
        "Redis: a notification that was seen ends the next wait too",
        "backends/redis/*.py",
        "self.$_seen[$stream] = $entries[-1][0]",
        "pass",
        (f"{LONG_POLL}test_a_notification_ends_one_wait",),
    ),
    Mutant(
        "Redis: a settlement waits with its exchange",
        "backends/redis/*.py",
        "0 if $settlements else $want.$patience",
        "$want.$patience",
        (f"{LONG_POLL}test_what_is_settled_is_not_held_up",),
    ),
)
