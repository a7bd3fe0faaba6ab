-- fire: decides one tick of a schedule and enqueues its job.
-- Keys: schedule job_seq job lease attempt_state
-- Arguments: ARGV[3] name, [4] expected last tick: 8 bytes, or '' for none, [5] this tick, [6] overlap: allow, skip, queue_one or
--   cancel_previous, [7] position of the job, [8] its full lane name, [9] its body, [10] its payload if it is large (see
--   enqueue_jobs.lua)
-- Reply: {'fired', 'skipped', 'moved', 'paused' or 'missing', id of the job or ''}
-- Atomic: one script. The last tick and the job are written together, so concurrent schedulers enqueue one job per tick.
-- Cost: O(log n) for n waiting jobs.
local kept = redis.call('HGET', schedule_key, ARGV[3])
if not kept then
  return { 'missing', '' }
end
if string.byte(kept) == 49 then
  return { 'paused', '' }
end
if (string.byte(kept, 2) == 49 and string.sub(kept, 3, 10) or '') ~= ARGV[4] then
  return { 'moved', '' }
end

-- Return whether the overlap policy allows a new job while the previous one has this state.
local function allows_next_job(id, overlap)
  local field = find_field(id)
  local body = field and redis.call('HGET', job_key, field)
  if not body or has_flag(body, FLAG_FINISHED) or overlap == 'allow' then
    return true
  end
  if overlap == 'cancel_previous' then
    cancel_job(field, body)
    write_buffer()
    return true
  end
  local state = redis.call('HGET', attempt_state_key, field)
  local failed = state and string.sub(state, 1, 4) ~= '\0\0\0\0'
  return overlap == 'queue_one' and (failed or redis.call('HEXISTS', lease_key, field) == 1)
end

local ends = 11 + string.byte(kept, 11)
local previous, stored = string.sub(kept, 12, ends), nil
if previous == '' or allows_next_job(previous, ARGV[6]) then
  local codes, holders = enqueue_jobs({ ARGV[8] }, ARGV[7], 9)
  if codes[1] == 'c' or codes[1] == 'e' then
    stored = holders[1] or get_new_id(ARGV[9])
  end
end
local last = stored or previous
redis.call('HSET', schedule_key, ARGV[3], '01' .. ARGV[5] .. string.char(#last) .. last .. string.sub(kept, ends + 1))
write_lane_counts()
notify_marked()
return { stored and 'fired' or 'skipped', stored or '' }
