-- Shared part: collects the writes of scripts that move jobs, and performs them at the end with a few commands.
-- Keys: job payload attempt_state ready scheduled lease session_leases cancel_requested finished dead_letter dead_letter_time
-- Provides: end_lease, add_waiting, requeue, finish_job, make_end_record, and write_buffer(), which performs all writes. Their
--   arguments are fields (seqs as 8 bytes) and the records of record_format.lua.
-- Atomic: nothing is written before everything is decided. No command of write_buffer can fail because of its arguments. Thus
--   the script is applied as a whole, although the server cannot roll back.
-- Cost: O(log n) per job, for n waiting jobs.
local drop_payload, put_job, drop_state, put_state = {}, {}, {}, {}
local drop_ready, put_ready, drop_due, put_due = {}, {}, {}, {}
local drop_lease, drop_held, drop_cancel = {}, {}, {}
local put_done, put_dead, put_dead_at = {}, {}, {}

-- End a lease.
local function end_lease(field, lease, lane)
  push(drop_lease, field)
  push(drop_held, string.sub(lease, 1, 4) .. field)
  lane.L = lane.L - 1
  if string.byte(lease, 41) == 49 then
    push(drop_cancel, field)
  end
end

-- Add a job to `ready` if it is due, else to `scheduled`.
local function add_waiting(field, lane, rank, due8, failed)
  if decode_time(due8, 1) <= now then
    push_pair(put_ready, 0, lane.number .. rank .. due8 .. field)
    local code = failed and 'R' or 'P'
    lane[code] = lane[code] + 1
  else
    local code = failed and 'T' or 'S'
    push_pair(put_due, 0, due8 .. field .. lane.number .. rank .. code)
    lane[code] = lane[code] + 1
  end
end

-- Make a leased job wait again. `counts`: failures 4 | lost 2. `settled`: the token that settles it, or nil.
local function requeue(field, lease, lane, counts, due8, settled)
  due8 = due8 or string.sub(lease, 55, 62)
  settled = settled or (#lease > 70 and string.sub(lease, 71, 90)) or NO_TOKEN
  push_pair(put_state, field, counts .. string.sub(lease, 5, 8) .. string.sub(lease, 33, 40) .. due8 .. settled)
  add_waiting(field, lane, string.sub(lease, 54, 54), due8, string.sub(counts, 1, 4) ~= '\0\0\0\0')
  mark_queue(lane.queue)
end

-- Finish a job. `attempts`: due 8 | started 8 | failures 4 | lost 2 | fence 4 | settled 20. `reason` may be nil.
local function finish_job(field, body, lane, code, attempts, reason)
  local flags, ends = string.byte(body, 21), find_head_end(body)
  local dead = code == 'F'
  local kept = ''
  if dead then
    kept = string.sub(body, ends + 1)
  elseif has_flag(body, FLAG_LARGE_PAYLOAD) then
    push(drop_payload, field)
  end
  push_pair(put_job, field, string.sub(body, 1, 12) .. string.sub(attempts, 1, 8) .. string.char(flags + FLAG_FINISHED)
    .. string.sub(body, 22, ends) .. code .. string.sub(attempts, 9, 16) .. now8 .. string.sub(attempts, 17, 46)
    .. (reason and struct.pack('>I2', #reason) .. reason or NO_REASON) .. kept)
  lane[code] = lane[code] + 1
  if dead then
    push_pair(put_dead, (struct.unpack('>I8', field)), field)
    push_pair(put_dead_at, now, field)
  else
    push_pair(put_done, now, field)
  end
  if bit.band(flags, FLAG_UNIQUE_KEY) ~= 0 and release_key(body, lane.name) then
    mark_queue(lane.queue)
  end
end

-- Return the `attempts` of finish_job for a job that is leased. `settled`: the token that settles it, or nil.
local function make_end_record(lease, counts, settled)
  settled = settled or (#lease > 70 and string.sub(lease, 71, 90)) or NO_TOKEN
  return string.sub(lease, 55, 62) .. string.sub(lease, 33, 40) .. counts .. string.sub(lease, 5, 8) .. settled
end

local function write_buffer()
  call_in_batches('HDEL', lease_key, drop_lease)
  call_in_batches('ZREM', session_leases_key, drop_held)
  call_in_batches('HDEL', cancel_requested_key, drop_cancel)
  call_in_batches('HDEL', payload_key, drop_payload)
  free_keys()
  call_in_batches('HDEL', attempt_state_key, drop_state)
  call_in_batches('ZREM', ready_key, drop_ready)
  call_in_batches('ZREM', scheduled_key, drop_due)
  call_in_batches('HSET', job_key, put_job)
  call_in_batches('HSET', attempt_state_key, put_state)
  call_in_batches('ZADD', ready_key, put_ready)
  call_in_batches('ZADD', scheduled_key, put_due)
  call_in_batches('ZADD', finished_key, put_done)
  call_in_batches('ZADD', dead_letter_key, put_dead)
  call_in_batches('ZADD', dead_letter_time_key, put_dead_at)
end
