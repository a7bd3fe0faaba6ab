-- Shared part: reads and changes flows and conditions for planning/flows.lua, as `FlowData` of backends/planning/flows.py says.
-- Keys: job scheduled lease attempt_state flow condition unmet flow_change running_flow ended_flow released_flow
-- Provides: save_flows(flows); any_job_sources() -> whether a job waits for a job
--   list_waiters(level, limit) -> conditions, awaited changes; list_due(limit), take_changes(), put_changes(changes)
--   meet(waiters), cancel(waiters), reopen(waiters). cancel returns what take_ended_members does, reopen {{field, body, code}, ...} of the
--     jobs that it changed.
--   A waiter is {source, field, on, seq, reason}; `reason` is why its job is cancelled if the condition is impossible.
--   suspend_run(field, body, lease, lane, packed): lets a durable run wait whose lease has ended. packed: the time for which it
--     waits in 8 bytes, as a delay (NEVER: none) | the flows and signals, each kind 1 | id or name 2 + n
--   write_waits(): writes for what they wait
--   cancel_wait(field, body) -> whether the suspended job was cancelled. A durable run that a worker ends is asked to end, and resumed.
--   release_flows(ids): lets `prune` see the ended members of flows that do not run
-- Atomic: what these functions write directly cannot fail. Changes of jobs are in the buffer (see write_buffer.lua).
-- Cost: O(log n) per condition, for n conditions and waiting jobs.
-- Offset, from the end, of the last byte of the source of a condition
local CONDITION_SOURCE_END = -11
-- Why a job is cancelled whose condition on this end is impossible
local CANCEL_REASONS = {
  [ON_SUCCESS] = 'dependency', [ON_FAILURE] = 'not needed', [ON_FINISHED] = 'dependency', [ON_ANY] = 'dependency', [FAILS_FAST] = 'dependency',
}
local REOPENED_REASONS = { dependency = true, ['not needed'] = true }

local function release_flows(ids)
  local members = {}
  for _, id in ipairs(ids) do
    push_pair(members, 0, id)
  end
  call_in_batches('ZADD', released_flow_key, members)
end

local function pack_flow_counts(flow)
  return pack_struct('>i4i4i4i4i4', flow.unfinished, flow.completed, flow.failed, flow.cancelled, flow.added)
end

-- Move a flow that is no group between those that run and those that have ended.
local function note_flow_end(flow, has_ended)
  if has_ended then
    redis.call('ZREM', running_flow_key, flow.position8 .. flow.id)
    redis.call('ZADD', ended_flow_key, now, flow.id)
  else
    redis.call('ZADD', running_flow_key, 0, flow.position8 .. flow.id)
    redis.call('ZREM', ended_flow_key, flow.id)
    redis.call('ZREM', released_flow_key, flow.id)
  end
end

local function save_flows(changed)
  local records = {}
  for id, flow in pairs(changed) do
    local had_ended, has_ended = flow.finished8 ~= NO_TIME, flow.unfinished == 0
    flow.finished8 = has_ended and now8 or NO_TIME
    push_pair(records, id, pack_flow_counts(flow) .. flow.created8 .. flow.finished8 .. flow.grown8 .. flow.position8 .. flow.identity)
    if not flow.parent and (has_ended or had_ended) then
      note_flow_end(flow, has_ended)
    end
  end
  call_in_batches('HSET', flow_key, records)
end

-- Return the first members of `condition` of a source whose class is between these two.
local function read_conditions(source, first, last, limit)
  return redis.call('ZRANGEBYLEX', condition_key, '[' .. source .. first, '(' .. source .. string.char(byte(last) + 1), 'LIMIT', 0, limit)
end

local function any_job_sources()
  local after = string.char(byte(JOB_SOURCE) + 1)
  return #redis.call('ZRANGEBYLEX', condition_key, '[' .. JOB_SOURCE, '(' .. after, 'LIMIT', 0, 1) > 0
end

-- Return whether no job waits for a job, and the only job for which others wait, as a source; nil: there are several.
local function find_only_job_source()
  local after = string.char(byte(JOB_SOURCE) + 1)
  local first = redis.call('ZRANGEBYLEX', condition_key, '[' .. JOB_SOURCE, '(' .. after, 'LIMIT', 0, 1)[1]
  if not first then
    return true, nil
  end
  local last = redis.call('ZREVRANGEBYLEX', condition_key, '(' .. after, '[' .. JOB_SOURCE, 'LIMIT', 0, 1)[1]
  local source = sub(first, 1, CONDITION_SOURCE_END)
  return false, source == sub(last, 1, CONDITION_SOURCE_END) and source or nil
end

local function is_waiter_before(one, other)
  if one.seq ~= other.seq then
    return one.seq < other.seq
  end
  return one.source < other.source
end

local function sort_waiters(waiters)
  for i = 2, #waiters do
    if not is_waiter_before(waiters[i - 1], waiters[i]) then
      table.sort(waiters, is_waiter_before)
      return
    end
  end
end

-- Return the first members of `condition` that a change concerns: up to `limit` of each class.
local function read_concerned(change, limit)
  local source, transition = change.source, change.transition
  if transition == REOPENED then
    return read_conditions(source, IMPOSSIBLE, IMPOSSIBLE, limit)
  elseif transition == FAILING then
    return read_conditions(source, OPEN, OPEN, limit)
  end
  local members = read_conditions(source, OPEN_ON_END, OPEN, limit)
  if #members == limit then -- of each class, as many
    members = read_conditions(source, OPEN_ON_END, OPEN_ON_END, limit)
    for _, member in ipairs(read_conditions(source, OPEN, OPEN, limit)) do
      push(members, member)
    end
  end
  return members
end

-- Return up to `limit` conditions that the changes of a level concern, in the order of their jobs, and the changes that concern one.
local function list_waiters(level, limit)
  local found, awaited = {}, {}
  if redis.call('EXISTS', condition_key) == 0 then
    return found, awaited
  end
  local has_none, only = false, nil
  if #level > 1 then -- most changes are ends of jobs for which no job waits
    has_none, only = find_only_job_source()
  end
  for _, change in ipairs(level) do
    local source = change.source
    if source == only or not (has_none or only) or sub(source, 1, 1) ~= JOB_SOURCE then
      local members = read_concerned(change, limit)
      if #members > 0 then
        push(awaited, change)
      end
      for _, member in ipairs(members) do
        local field, on = sub(member, -9, -2), sub(member, -1)
        push(found, { source = source, field = field, on = on, seq = (unpack_struct('>I8', field)), reason = CANCEL_REASONS[on] })
      end
    end
  end
  sort_waiters(found)
  for i = #found, limit + 1, -1 do
    found[i] = nil
  end
  return found, awaited
end

-- Return up to `limit` durable runs whose time has come, among the first MAX_DUE of what is due.
local function list_due(limit)
  local found, first = {}, redis.call('ZRANGE', scheduled_key, 0, 0)[1]
  if not first or decode_time(first, 1) > now then
    return found
  end
  for _, member in ipairs(redis.call('ZRANGEBYLEX', scheduled_key, '-', '(' .. encode_time(now + 1), 'LIMIT', 0, MAX_DUE)) do
    local _, field, _, _, code = read_scheduled(member)
    if code == SUSPENDED and #found < limit then
      push(found, { field = field, on = ON_ANY })
    end
  end
  return found
end

-- Return the numbers of unmet and of impossible conditions of the jobs that wait, by field.
local function read_unmet(waiters)
  local unmet, fields = {}, {}
  for _, waiter in ipairs(waiters) do
    if not unmet[waiter.field] then
      unmet[waiter.field] = { total = 0, impossible = 0, record = '' }
      push(fields, waiter.field)
    end
  end
  for i, record in ipairs(get_in_batches(unmet_key, fields)) do
    local numbers = unmet[fields[i]]
    if record then
      numbers.record = record
      numbers.total, numbers.impossible = unpack_struct('>I2I2', record)
    end
  end
  return unmet, fields
end

local function write_unmet(unmet)
  local kept, dropped = {}, {}
  for field, numbers in pairs(unmet) do
    if numbers.total + numbers.impossible > 0 then
      push_pair(kept, field, pack_struct('>I2I2', numbers.total, numbers.impossible) .. sub(numbers.record, 5))
    else
      push(dropped, field)
    end
  end
  call_in_batches('HSET', unmet_key, kept)
  call_in_batches('HDEL', unmet_key, dropped)
end

-- Return the bodies of these jobs, by field.
local function read_waiting_bodies(fields)
  local bodies = {}
  for i, body in ipairs(get_in_batches(job_key, fields)) do
    bodies[fields[i]] = body
  end
  return bodies
end

-- Return the attempt states of those of these jobs that have one, by field.
local function read_attempts(fields)
  local attempts = {}
  for i, state in ipairs(get_in_batches(attempt_state_key, fields)) do
    attempts[fields[i]] = state and read_attempt_state(state) or nil
  end
  return attempts
end

-- `attempts`: those of a job that was leased before, or nil.
local function resume(field, body, attempts)
  local lane, due8 = get_lane(get_lane_number(body)), attempts and attempts.due8 or get_due(body)
  if decode_time(due8, 1) < now then
    due8 = now8
  end
  lane[SUSPENDED] = lane[SUSPENDED] - 1
  put_job(field, make_resumed_job(body, due8))
  if attempts then
    put_attempts(field, attempts, due8)
  end
  add_waiting(field, lane, get_rank(body), due8, attempts and has_failures(attempts.counts) or false, get_tenant(body))
  mark_queue(lane.queue)
end

local function meet(waiters)
  local unmet, removed, ready = read_unmet(waiters), {}, {}
  for _, waiter in ipairs(waiters) do
    local numbers = unmet[waiter.field]
    if waiter.on == ON_ANY then
      if numbers.total > 0 then -- the first one of the run
        numbers.alternatives, numbers.record, numbers.total = numbers.record, '', 0
        push(ready, waiter.field)
      end
    else
      push(removed, get_condition(waiter.source, get_condition_class(waiter.on), waiter.field, waiter.on))
      if waiter.on ~= FAILS_FAST then
        numbers.total = numbers.total - 1
        if numbers.total == 0 then
          push(ready, waiter.field)
        end
      end
    end
  end
  call_in_batches('ZREM', condition_key, removed)
  write_unmet(unmet)
  local bodies, attempts, scheduled, conditions = read_waiting_bodies(ready), read_attempts(ready), {}, {}
  for _, field in ipairs(ready) do
    local body, alternatives = bodies[field], unmet[field].alternatives
    if alternatives then
      push_alternatives(field, body, alternatives, scheduled, conditions)
    end
    if body and is_suspended(body) then
      resume(field, body, attempts[field])
    end
  end
  call_in_batches('ZREM', scheduled_key, scheduled)
  call_in_batches('ZREM', condition_key, conditions)
end

local new_unmet, new_conditions = {}, {}

local function suspend_run(field, body, lease, lane, packed)
  local delay8, at, due8 = sub(packed, 1, 8), 9, nil
  local sources, record = {}, is_member(body) and redis.call('HGET', unmet_key, field)
  while at <= #packed do
    local kind, name, following = unpack_struct('>c1I2c0', packed, at)
    local source = pack_source(kind, kind == SIGNAL_SOURCE and field .. name or name)
    push(sources, source)
    push_pair(new_conditions, 0, get_condition(source, OPEN_ON_END, field, ON_ANY))
    at = following
  end
  local waits = table.concat(sources)
  if delay8 ~= NEVER then
    due8 = encode_time(now + decode_time(delay8, 1))
    waits = waits .. pack_source(TIME_SOURCE, due8)
  end
  local impossible = record and sub(record, 3, 4) or '\0\0'
  push_pair(new_unmet, field, '\0\1' .. impossible .. waits)
  put_suspended(field, body, lease, lane, due8, sources)
end

-- Write for what the runs wait that were suspended.
local function write_waits()
  call_in_batches('HSET', unmet_key, new_unmet)
  call_in_batches('ZADD', condition_key, new_conditions)
  new_unmet, new_conditions = {}, {}
end

-- Cancel a suspended job. A durable run that a worker ends is asked to end, and resumed. Return whether the job was cancelled.
-- `numbers`: its part of what read_unmet returns; the caller then calls write_unmet.
local function cancel_suspended(field, body, numbers, reason, keeps_payload)
  local state, lane = redis.call('HGET', attempt_state_key, field), get_lane(get_lane_number(body))
  if state and ask_to_end(field) then
    remove_alternatives(field, body, numbers.record)
    numbers.total, numbers.record = 0, ''
    resume(field, body, read_attempt_state(state))
    return false
  end
  lane[SUSPENDED] = lane[SUSPENDED] - 1
  drop_waiting(field, state)
  finish_job(field, body, lane, CANCELLED, state and read_attempt_state(state) or describe_waiting(body), reason, nil, keeps_payload)
  return true
end

-- Cancel a suspended job because a caller asked for it. Return whether it was cancelled.
local function cancel_wait(field, body)
  local unmet = read_unmet({ { field = field } })
  local is_cancelled = cancel_suspended(field, body, unmet[field])
  if is_cancelled then
    remove_conditions(field, body, is_member(body) and read_member(body))
  else
    write_unmet(unmet)
  end
  return is_cancelled
end

-- Return whether a job cannot run again, also after a replay.
local function has_ended_for_good(body)
  if not body or not has_flag(body, FLAG_FINISHED) then
    return not body
  end
  local job_end = read_job_end(body)
  return job_end.code ~= FAILED and not (job_end.code == CANCELLED and REOPENED_REASONS[job_end.reason])
end

-- Return whether a job waits for a worker.
local function may_cancel(field, body)
  return not has_flag(body, FLAG_FINISHED) and not is_suspended(body) and redis.call('HEXISTS', lease_key, field) == 0
end

local function cancel(waiters)
  local unmet, fields = read_unmet(waiters)
  local bodies, removed, added = read_waiting_bodies(fields), {}, {}
  for _, waiter in ipairs(waiters) do
    local field = waiter.field
    local body, numbers = bodies[field], unmet[field]
    push(removed, get_condition(waiter.source, get_condition_class(waiter.on), field, waiter.on))
    if not (waiter.on == FAILS_FAST and has_ended_for_good(body)) then
      push_pair(added, 0, get_condition(waiter.source, IMPOSSIBLE, field, waiter.on))
      numbers.impossible = numbers.impossible + 1
    end
    if body and waiter.on == FAILS_FAST and may_cancel(field, body) then
      cancel_waiting(field, body, waiter.reason, true)
      bodies[field] = nil
    elseif body and is_suspended(body) then
      cancel_suspended(field, body, numbers, waiter.reason, true)
      bodies[field] = nil
    end
  end
  call_in_batches('ZREM', condition_key, removed)
  call_in_batches('ZADD', condition_key, added)
  write_unmet(unmet)
  return take_ended_members() -- those that finish_job has noted
end

-- Suspend a job again that was cancelled for a condition, or let it wait for a worker if it has nothing to wait for.
local function suspend_again(field, body, has_conditions)
  local lane = get_lane(get_lane_number(body))
  local waiting = make_pending_job(body, get_due(body))
  lane[CANCELLED], lane[SUSPENDED] = lane[CANCELLED] - 1, lane[SUSPENDED] + 1
  local attempts = read_job_end(body)
  attempts.due8 = get_due(body)
  attempts = attempts.fence4 ~= NO_FENCE and attempts or nil
  if not has_conditions then
    resume(field, waiting, attempts)
  else
    put_job(field, waiting)
    if attempts then
      put_attempts(field, attempts, attempts.due8)
    end
  end
  if has_flag(body, FLAG_UNIQUE_KEY) and not find_key_holder((get_key_field(body, lane.name))) then
    take_key(waiting, lane.name)
  end
end

local function reopen(waiters)
  local unmet, fields = read_unmet(waiters)
  local bodies, removed, added, reopened = read_waiting_bodies(fields), {}, {}, {}
  for _, waiter in ipairs(waiters) do
    local field = waiter.field
    local body, numbers = bodies[field], unmet[field]
    push(removed, get_condition(waiter.source, IMPOSSIBLE, field, waiter.on))
    push_pair(added, 0, get_condition(waiter.source, get_condition_class(waiter.on), field, waiter.on))
    numbers.impossible = numbers.impossible - 1
    if body and numbers.impossible == 0 and has_flag(body, FLAG_FINISHED) and has_flag(body, FLAG_PAYLOAD_KEPT) then
      local job_end = read_job_end(body)
      if job_end.code == CANCELLED and REOPENED_REASONS[job_end.reason] then
        suspend_again(field, body, numbers.total > 0)
        push(reopened, { field, body, CANCELLED })
      end
    end
  end
  call_in_batches('ZREM', condition_key, removed)
  call_in_batches('ZADD', condition_key, added)
  write_unmet(unmet)
  return reopened
end

-- Remove and return the changes that earlier steps have left, in their order.
local function take_changes()
  local changes = {}
  if redis.call('EXISTS', flow_change_key) == 0 then
    return changes
  end
  local members = redis.call('ZRANGE', flow_change_key, 0, -1)
  for i, member in ipairs(members) do
    changes[i] = { transition = sub(member, 9, 9), source = sub(member, 10) }
  end
  call_in_batches('ZREM', flow_change_key, members)
  return changes
end

-- Leave changes to a later step, without those for which no job waits.
local function put_changes(changes)
  local members = {}
  local has_job_sources = #changes > 0 and any_job_sources()
  for i, change in ipairs(changes) do
    local may_concern = has_job_sources or sub(change.source, 1, 1) ~= JOB_SOURCE
    if may_concern and #read_conditions(change.source, OPEN_ON_END, IMPOSSIBLE, 1) > 0 then
      push_pair(members, 0, pack_struct('>I8', i) .. change.transition .. change.source)
    end
  end
  call_in_batches('ZADD', flow_change_key, members)
end
