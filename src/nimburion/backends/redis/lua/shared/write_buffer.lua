-- Shared part: collects the writes of scripts that move jobs, and performs them at the end with a few commands.
-- Keys: job payload attempt_state ready scheduled lease session_leases cancel_requested finished dead_letter dead_letter_time
-- Provides: end_lease, add_waiting, drop_waiting, requeue, finish_job, put_job, and write_buffer(defers_uses), which performs all writes, but leaves those
--   of the uses of keys to the caller if `defers_uses`. restart_buffer(): forgets the writes, which were performed.
--   The caller of write_buffer then calls resolve_flows (see settles_members.lua) if a job may have ended. `field` is a seq as 8 bytes,
--   `body` a record of `job`, `lease` a result of read_lease. A settlement first sets `counts` and `settled` of the lease.
-- Atomic: nothing is written before everything is decided. No command of write_buffer can fail because of its arguments. Thus
--   the script is applied as a whole, although the server cannot roll back.
-- Cost: O(log n) per job, for n waiting jobs.
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
    push(ended_members, { field, body, code })
  elseif code == FAILED then
    push_pair(writes.put_dead_letter_time, now, field)
  else
    push_pair(writes.put_finished, now, field)
  end
  if band(flags, FLAG_UNIQUE_KEY) ~= 0 and release_key(body, lane.name) then
    mark_queue(lane.queue)
  end
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
