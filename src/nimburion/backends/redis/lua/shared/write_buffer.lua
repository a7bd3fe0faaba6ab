-- Shared part: collects the writes of scripts that move jobs, and performs them at the end with a few commands.
-- Keys: job payload attempt_state ready scheduled lease session_leases cancel_requested finished dead_letter dead_letter_time
-- Provides: end_lease, add_waiting, drop_waiting, requeue, finish_job, complete_plain, put_job, put_attempts,
--   put_suspended, and write_buffer(defers_uses), which performs all writes, but leaves those of the uses of keys to the caller if
--   `defers_uses`. restart_buffer(): forgets the writes, which were performed.
--   take_ended_members() -> {{code, count, fields, bodies}, ...}: the members of flows that have ended since the last call, with their bodies before
--     their end. Those that ended one after the other with the same options are together.
--   take_suspended_runs() -> {{field, sources}, ...}: the same of runs; has_flow_changes() -> whether one of both would return something
--   The caller of write_buffer then calls resolve_flows (see resolve_flows.lua) if a job may have ended. `field` is a seq as 8 bytes,
--   `body` a record of `job`, `lease` a result of read_lease. A settlement first sets `counts` and `settled` of the lease.
-- Idle: has_flow_changes
-- Atomic: nothing is written before everything is decided. No command of write_buffer can fail because of its arguments. Thus
--   the script is applied as a whole, although the server cannot roll back.
-- Cost: O(log n) per job, for n waiting jobs.
local ended_members, suspended_runs = {}, {}
local writes = {
  drop_payload = {}, put_job = {}, drop_state = {}, put_state = {},
  drop_ready = {}, put_ready = {}, drop_scheduled = {}, put_scheduled = {},
  drop_lease = {}, ended_keys = {}, drop_session_lease = {}, drop_cancel = {},
  put_finished = {}, put_dead_letter = {}, put_dead_letter_time = {}, put_turns = {},
}

-- End a lease. `ran`: its handler may have run, and its tenant is charged the time.
local function end_lease(field, lease, lane, ran)
  push(writes.drop_lease, field)
  push(writes.drop_session_lease, lease.session4 .. field)
  lane[LEASED] = lane[LEASED] - 1
  if lease.keys then
    push(writes.ended_keys, lease.keys)
  end
  if lease.charge then
    settle_charge(lease, lane, ran)
  end
  if lease.is_cancel_requested then
    push(writes.drop_cancel, field)
  end
end

-- Add a job to `ready`, or to the turns of its tenant, if it is due, else to `scheduled`.
local function add_waiting(field, lane, rank, due8, failed, tenant)
  local code
  if decode_time(due8, 1) <= now then
    code = failed and RETRYING or PENDING
    if tenant then
      push(writes.put_turns, { lane, rank, due8, field, tenant })
    else
      push_pair(writes.put_ready, 0, lane.number .. rank .. due8 .. field)
    end
  else
    code = failed and RETRY_SCHEDULED or SCHEDULED
    push_pair(writes.put_scheduled, 0, due8 .. field .. lane.number .. rank .. code .. get_tenant_suffix(tenant))
  end
  lane[code] = lane[code] + 1
end

-- Make a leased job wait again, until its old due time or until `due8`.
local function requeue(field, lease, lane, due8)
  due8 = due8 or lease.due8
  push_pair(writes.put_state, field, make_attempt_state(lease, due8))
  add_waiting(field, lane, lease.rank, due8, has_failures(lease.counts), lease.tenant)
  mark_queue(lane.queue)
end

-- Remove what is stored of a job that waits for a worker. `ready`, `scheduled`: its member of one of these, or nil.
local function drop_waiting(field, has_state, ready, scheduled)
  if has_state then
    push(writes.drop_state, field)
  end
  if ready then
    push(writes.drop_ready, ready)
  end
  if scheduled then
    push(writes.drop_scheduled, scheduled)
  end
end

local function put_job(field, body)
  push_pair(writes.put_job, field, body)
end

-- `attempts`: as for make_attempt_state
local function put_attempts(field, attempts, due8)
  push_pair(writes.put_state, field, make_attempt_state(attempts, due8))
end

-- Suspend a leased job, which waits for these sources. `due8`: when it is resumed; nil: it waits for no time.
local function put_suspended(field, body, lease, lane, due8, sources)
  push(suspended_runs, { field = field, sources = sources })
  put_job(field, make_suspended_job(body))
  put_attempts(field, lease, lease.due8)
  lane[SUSPENDED] = lane[SUSPENDED] + 1
  if due8 then
    push_pair(writes.put_scheduled, 0, due8 .. field .. lane.number .. lease.rank .. SUSPENDED)
    mark_queue(lane.queue)
  end
end

-- Note that a member with these options has ended. `body`: before.
local function note_ended(field, body, options, code)
  local last = ended_members[#ended_members]
  if not last or last.options ~= options or last.code ~= code then
    last = { options = options, code = code, count = 0, fields = {}, bodies = {} }
    push(ended_members, last)
  end
  local place = last.count + 1
  last.count, last.fields[place], last.bodies[place] = place, field, body
end

-- Finish a job. `attempts` is its lease, if an attempt ends it, or its attempt state. `reason` may be nil; `fingerprint` is that of
-- the error of a failed job. A failed job keeps its payload, and others if `keeps_payload`.
local function finish_job(field, body, lane, code, attempts, reason, fingerprint, keeps_payload)
  local rest, flags = '', byte(body, JOB_FLAGS)
  if code == FAILED then
    rest = string.char(#fingerprint) .. fingerprint .. get_payload_part(body)
  elseif keeps_payload then
    rest = get_payload_part(body)
  elseif band(flags, FLAG_LARGE_PAYLOAD) ~= 0 then
    push(writes.drop_payload, field)
  end
  push_pair(writes.put_job, field, make_finished_job(body, code, attempts, reason, rest, keeps_payload))
  lane[code] = lane[code] + 1
  if code == FAILED then
    push_pair(writes.put_dead_letter, (unpack_struct('>I8', field)), field)
  end
  if band(flags, FLAG_OPTIONS) ~= 0 and is_member(body) then
    note_ended(field, body, get_options(body), code)
  elseif code == FAILED then
    push_pair(writes.put_dead_letter_time, now, field)
  else
    push_pair(writes.put_finished, now, field)
  end
  if band(flags, FLAG_UNIQUE_KEY) ~= 0 and release_key(body, lane.name) then
    mark_queue(lane.queue)
  end
end

-- Complete a job that has only what each job has, and perhaps options, without reading its records field by field. Return false, and
-- do nothing, if the lease is another one, or if the job has a unique key, a large payload, a limit by key, a tenant or a cancel request.
-- `keeps`: whether the job keeps its payload.
local function complete_plain(field, token, record, body, session4, keeps)
  local flags = byte(body, JOB_FLAGS)
  local is_short = #record == LEASE_END or #record == LEASE_SETTLED_END
  if not is_short or flags > FLAG_OPTIONS or sub(record, 1, LEASE_TOKEN_END) ~= session4 .. token then
    return false
  end
  local started8, cancel, counts, _, lane4, _, due8 = unpack_struct('>c8c1c6I2c4c1c8', record, LEASE_STARTED)
  if cancel == CANCEL_REQUESTED then
    return false
  end
  local lane, id_end = get_lane(lane4), JOB_ID_LENGTH + byte(body, JOB_ID_LENGTH)
  lane[LEASED], lane[COMPLETED] = lane[LEASED] - 1, lane[COMPLETED] + 1
  push(writes.drop_lease, field)
  push(writes.drop_session_lease, session4 .. field)
  local finished_flags, head_end = keeps and PLAIN_KEPT_FLAGS or PLAIN_FLAGS, id_end
  if flags == FLAG_OPTIONS then
    finished_flags = keeps and OPTIONS_KEPT_FLAGS or OPTIONS_FLAGS
    head_end = id_end + 4 + (unpack_struct('>I4', body, id_end + 1))
  end
  -- as is_member and get_options
  if flags == FLAG_OPTIONS and byte(body, id_end + 5) == MEMBER_MARK then
    note_ended(field, body, sub(body, id_end + 5, head_end), COMPLETED)
  else
    push_pair(writes.put_finished, now, field)
  end
  push_pair(writes.put_job, field, sub(body, 1, JOB_CREATED_END) .. due8 .. finished_flags
    .. sub(body, JOB_PRIORITY, head_end) .. COMPLETED .. started8 .. now8 .. counts .. token .. session4
    .. (keeps and sub(body, head_end + 1) or ''))
  return true
end

local function write_buffer(defers_uses)
  if may_have_limits then
    count_leased()
  end
  if #writes.ended_keys > 0 then
    release_keys(writes.ended_keys)
  end
  for _, turn in ipairs(writes.put_turns) do
    add_turn(unpack(turn))
  end
  if not defers_uses then
    write_uses()
  end
  write_turns()
  call_in_batches('HDEL', lease_key, writes.drop_lease)
  call_in_batches('ZREM', session_leases_key, writes.drop_session_lease)
  call_in_batches('HDEL', cancel_requested_key, writes.drop_cancel)
  call_in_batches('HDEL', payload_key, writes.drop_payload)
  free_keys()
  call_in_batches('HDEL', attempt_state_key, writes.drop_state)
  call_in_batches('ZREM', ready_key, writes.drop_ready)
  call_in_batches('ZREM', scheduled_key, writes.drop_scheduled)
  call_in_batches('HSET', job_key, writes.put_job)
  call_in_batches('HSET', attempt_state_key, writes.put_state)
  call_in_batches('ZADD', ready_key, writes.put_ready)
  call_in_batches('ZADD', scheduled_key, writes.put_scheduled)
  call_in_batches('ZADD', finished_key, writes.put_finished)
  call_in_batches('ZADD', dead_letter_key, writes.put_dead_letter)
  call_in_batches('ZADD', dead_letter_time_key, writes.put_dead_letter_time)
end

local function restart_buffer()
  for name in pairs(writes) do
    writes[name] = {}
  end
end

local function take_ended_members()
  local taken = ended_members
  ended_members = {}
  return taken
end

local function take_suspended_runs()
  local taken = suspended_runs
  suspended_runs = {}
  return taken
end

local function has_flow_changes()
  return #ended_members + #suspended_runs > 0
end
