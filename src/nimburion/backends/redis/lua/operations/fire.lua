-- Fire: decide one tick of a schedule, and store its job.
-- Keys: schedule id job lease state
-- Inputs: ARGV[3] name, [4] the last tick that is expected: 8 bytes, or '' for none, [5] this tick, [6] overlap: allow, skip,
--   queue_one or cancel_previous, [7] meta of the job, [8] its full lane name, [9] its body, [10] its payload if that lies apart
--   (see enqueue_jobs.lua)
-- Result: {fired, skipped, moved, paused or missing, id of the job or ''}
-- Atomic: one script: a tick moves together with its job, whoever else decides it
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

-- Whether the schedule's previous job lets the next one in.
local function makes_way(id, overlap)
  local field = field_of(id)
  local body = field and redis.call('HGET', job_key, field)
  if not body or has(body, FINISHED) or overlap == 'allow' then
    return true
  end
  if overlap == 'cancel_previous' then
    cancel(field, body)
    write_ledger()
    return true
  end
  local state = redis.call('HGET', state_key, field)
  local failed = state and string.sub(state, 1, 4) ~= '\0\0\0\0'
  return overlap == 'queue_one' and (failed or redis.call('HEXISTS', lease_key, field) == 1)
end

local ends = 11 + string.byte(kept, 11)
local previous, stored = string.sub(kept, 12, ends), nil
if previous == '' or makes_way(previous, ARGV[6]) then
  local letters, rivals = store({ ARGV[8] }, ARGV[7], 9)
  if letters[1] == 'c' or letters[1] == 'e' then
    stored = rivals[1] or body_id(ARGV[9])
  end
end
local last = stored or previous
redis.call('HSET', schedule_key, ARGV[3], '01' .. ARGV[5] .. string.char(#last) .. last .. string.sub(kept, ends + 1))
count_lanes()
ring()
return { stored and 'fired' or 'skipped', stored or '' }
