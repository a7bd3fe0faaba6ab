-- Shared part of exchange: settles attempts.
-- Keys: job attempt_state lease history progress result result_time
-- Provides: settle_all(records, session4, next_extra) -> one code per settlement: d done, a already, s stale
--   records: 29 bytes per settlement, in order: kind 1 | seq 8 | token 20
--   ARGV[next_extra...]: the other values of each settlement, in the same order
--   Kinds: c completed, C completed with a result (result), k and K the same but the job keeps its payload, r retried (delay 8, error), f failed (reason, error, fingerprint),
--     l released, u the same unstarted, s released with a delay (delay 8), v the same unstarted, q rate limited (delay 8), x cancelled (reason),
--     p progressed (fraction and message), e spent (units, decimal), t recorded (see record_step), w suspended (see suspend_run)
-- Atomic: all settlements are decided before anything is written. backends/planning/settle.py decides the same in Python.
-- Cost: O(log n) per settlement, for n waiting jobs.
local KIND_COMPLETED, KIND_COMPLETED_WITH_RESULT, KIND_RETRIED, KIND_FAILED = 'c', 'C', 'r', 'f'
local KIND_KEPT, KIND_KEPT_WITH_RESULT = 'k', 'K'
local KIND_RELEASED, KIND_SNOOZED, KIND_CANCELLED, KIND_PROGRESSED = 'l', 's', 'x', 'p'
local KIND_UNSTARTED, KIND_SNOOZED_UNSTARTED, KIND_RATE_LIMITED, KIND_SPENT = 'u', 'v', 'q', 'e'
local KIND_RECORDED, KIND_SUSPENDED = 't', 'w'
local SETTLED_DONE, SETTLED_ALREADY, SETTLED_STALE = 'd', 'a', 's'
local SETTLEMENT_SIZE = 29

-- Return kind, field and token of a settlement.
local function read_settlement(records, i)
  return unpack_struct('>c1c8c20', records, SETTLEMENT_SIZE * (i - 1) + 1)
end

-- Return the token that settled the job last; zeros or '' if there is none.
local function find_settled_token(field, lease, body)
  if lease then
    return lease.settled
  end
  local state = redis.call('HGET', attempt_state_key, field)
  if state then
    return read_attempt_state(state).settled
  end
  return body and has_flag(body, FLAG_FINISHED) and read_job_end(body).settled or ''
end

-- Return the code of a settlement whose lease the session does not hold. `ended_by`: the token that has ended the lease in this call,
-- or nil.
local function decide_unmatched(field, token, ended_by, lease, body)
  local settled = ended_by or find_settled_token(field, lease, body)
  return settled == token and token ~= NO_TOKEN and SETTLED_ALREADY or SETTLED_STALE
end

local function add_failure(counts)
  local failures = unpack_struct('>I4', counts)
  return pack_struct('>I4', failures + 1) .. sub(counts, 5)
end

-- Read the settlements and their leases.
local function read_settled(records)
  local kinds, fields, tokens, has_steps = {}, {}, {}, false
  for i = 1, #records / SETTLEMENT_SIZE do
    kinds[i], fields[i], tokens[i] = read_settlement(records, i)
    has_steps = has_steps or kinds[i] == KIND_RECORDED
  end
  return { kinds = kinds, fields = fields, tokens = tokens, has_steps = has_steps, leases = get_in_batches(lease_key, fields) }
end

-- Return the bodies of the jobs whose settlements have no code yet.
local function read_other_bodies(all_fields, codes)
  if not next(codes) then
    return get_in_batches(job_key, all_fields)
  end
  local fields, places, bodies = {}, {}, {}
  for i, field in ipairs(all_fields) do
    if not codes[i] then
      push(fields, field)
      push(places, i)
    end
  end
  for i, body in ipairs(get_in_batches(job_key, fields)) do
    bodies[places[i]] = body
  end
  return bodies
end

local function settle_all(records, session4, next_extra)
  local settled, codes, are_all = read_settled(records), {}, false
  if settled.has_steps then
    codes, are_all = record_steps(settled, session4, next_extra)
  end
  if are_all then
    return table.concat(codes)
  end
  local kinds, fields, tokens, leases = settled.kinds, settled.fields, settled.tokens, settled.leases
  local bodies = read_other_bodies(fields, codes)
  local ended, histories, progressed, results, result_times, reused_lease = {}, {}, {}, {}, {}, {}
  local reset_leases = {}
  local has_read_charges = false

  local function take_extra()
    next_extra = next_extra + 1
    return ARGV[next_extra - 1]
  end

  local function add_history(field, json)
    histories[field] = (histories[field] or redis.call('HGET', history_key, field) or '') .. make_history_entry(json)
  end

  -- A member of a flow keeps its result while its flow runs (see flow_members.lua).
  local function add_result(field, body, result)
    push_pair(results, field, result)
    if not is_member(body) then
      push_pair(result_times, now, field)
    end
  end

  local function requeue_or_cancel(field, lease, body, lane, delay8)
    if not lease.is_cancel_requested then
      requeue(field, lease, lane, delay8 and encode_time(now + decode_time(delay8, 1)))
    elseif ask_to_end(field) then
      requeue(field, lease, lane)
    else
      finish_job(field, body, lane, CANCELLED, lease)
    end
  end

  -- Release a job whose service refused it. The rate of one of its limits, if there is one, keeps it in its place.
  local function release_refused(field, lease, body, lane, delay8)
    local delay = decode_time(delay8, 1)
    if block_rates(lane, body, delay) then
      delay8 = nil
    end
    requeue_or_cancel(field, lease, body, lane, delay8)
  end

  -- Store a step of a durable run. If it is new, the failures and losses of the job become 0.
  local function store_step(field, lease, packed, record)
    if record_step(field, packed) and lease.counts ~= NO_COUNTS and sub(packed, 1, 4) ~= CLEANUP_STEP then
      reset_leases[field] = reset_lease_counts(record)
      redis.call('HSET', lease_key, field, reset_leases[field])
    end
  end

  for i = 1, #kinds do
    local kind, field, token, record, body = kinds[i], fields[i], tokens[i], reset_leases[fields[i]] or leases[i], bodies[i]
    local is_completed = (kind == KIND_KEPT or kind == KIND_COMPLETED) and record and not ended[field]
    if codes[i] then
      take_extra()
    elseif is_completed and complete_plain(field, token, record, body, session4, kind == KIND_KEPT) then
      codes[i], ended[field] = SETTLED_DONE, token
    else
      local lease = record and read_lease(record, reused_lease)
      local first, second, third
      if kind ~= KIND_COMPLETED and kind ~= KIND_KEPT and kind ~= KIND_RELEASED and kind ~= KIND_UNSTARTED then
        first = take_extra()
        if kind == KIND_RETRIED or kind == KIND_FAILED then
          second = take_extra()
          third = kind == KIND_FAILED and take_extra()
        end
      end
      if ended[field] or not lease or lease.session4 ~= session4 or get_token(lease) ~= token then
        codes[i] = decide_unmatched(field, token, ended[field], lease, body)
      elseif kind == KIND_PROGRESSED then
        codes[i] = SETTLED_DONE
        push_pair(progressed, field, first)
      elseif kind == KIND_SPENT then
        codes[i] = SETTLED_DONE
        local lane = get_lane(lease.lane4)
        spend_limits(list_lane_limits(lane.queue, lane.name), tonumber(first))
        spend_limits(list_limits(lane, body), tonumber(first))
      elseif kind == KIND_RECORDED then
        codes[i] = SETTLED_DONE
        store_step(field, lease, first, record)
      else
        codes[i], ended[field], lease.settled = SETTLED_DONE, token, token
        local lane = get_lane(lease.lane4)
        if lease.charge and not has_read_charges then
          read_charged(leases)
          has_read_charges = true
        end
        end_lease(field, lease, lane, kind ~= KIND_UNSTARTED and kind ~= KIND_SNOOZED_UNSTARTED)
        if kind == KIND_COMPLETED or kind == KIND_COMPLETED_WITH_RESULT then
          finish_job(field, body, lane, COMPLETED, lease)
          if first then
            add_result(field, body, first)
          end
        elseif kind == KIND_KEPT or kind == KIND_KEPT_WITH_RESULT then
          finish_job(field, body, lane, COMPLETED, lease, nil, nil, true)
          if first then
            add_result(field, body, first)
          end
        elseif kind == KIND_RETRIED then
          add_history(field, second)
          lease.counts = add_failure(lease.counts)
          requeue_or_cancel(field, lease, body, lane, first)
        elseif kind == KIND_FAILED then
          add_history(field, second)
          lease.counts = add_failure(lease.counts)
          finish_job(field, body, lane, FAILED, lease, first, third)
        elseif kind == KIND_CANCELLED then
          finish_job(field, body, lane, CANCELLED, lease, first)
        elseif kind == KIND_RATE_LIMITED then
          release_refused(field, lease, body, lane, first)
        elseif kind == KIND_SUSPENDED and not lease.is_cancel_requested then
          suspend_run(field, body, lease, lane, first)
        elseif kind == KIND_SUSPENDED then
          requeue_or_cancel(field, lease, body, lane)
        else -- KIND_RELEASED, KIND_UNSTARTED, KIND_SNOOZED, KIND_SNOOZED_UNSTARTED
          if kind == KIND_UNSTARTED or kind == KIND_SNOOZED_UNSTARTED then
            refund_limits(field, lane, lease)
          end
          requeue_or_cancel(field, lease, body, lane, first)
        end
      end
    end
  end

  write_buffer(true)
  call_in_batches('HSET', progress_key, progressed)
  call_in_batches('HSET', result_key, results)
  call_in_batches('ZADD', result_time_key, result_times)
  for field, entries in pairs(histories) do
    redis.call('HSET', history_key, field, entries)
  end
  return table.concat(codes)
end
