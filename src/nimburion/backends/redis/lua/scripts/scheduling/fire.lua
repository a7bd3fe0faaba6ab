-- fire: decides one tick of a schedule and enqueues its job.
-- Keys: record job_seq job lease attempt_state
-- Arguments:
--   ARGV[3] the name of the schedule
--   ARGV[4] the expected last tick as text; '': none
--   ARGV[5] this tick as text
--   ARGV[6] overlap: allow, skip, queue_one or cancel_previous
--   ARGV[7] the position of the job, [8] its full lane name, [9] its body, [10] its payload if it is large (see enqueue_jobs.lua)
-- Reply: {'fired', 'skipped', 'moved', 'paused' or 'missing', id of the job or ''}
-- Atomic: one script. The last tick and the job are written together, so concurrent schedulers enqueue one job per tick.
-- Cost: O(log n) for n waiting jobs.
local name, expected_last, tick, overlap, position, full_name, body
  = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local FIRST_BODY = 9
local record_field = get_record_field('schedule', name)
local record = read_record(record_field)
if not record then
  return { 'missing', '' }
end
local schedule = cjson.decode(record.body)
if schedule.paused then
  return { 'paused', '' }
end
if (schedule.last_tick == cjson.null and '' or schedule.last_tick) ~= expected_last then
  return { 'moved', '' }
end

-- Return whether the overlap policy allows a new job while the previous one has this state.
local function allows_next_job(id)
  local field = find_field(id)
  local previous = field and redis.call('HGET', job_key, field)
  if not previous or has_flag(previous, FLAG_FINISHED) or overlap == 'allow' then
    return true
  end
  if overlap == 'cancel_previous' then
    cancel_job(field, previous)
    write_buffer()
    resolve_flows()
    return true
  end
  local state = redis.call('HGET', attempt_state_key, field)
  local failed = state and has_failures(read_attempt_state(state).counts)
  return overlap == 'queue_one' and (failed or redis.call('HEXISTS', lease_key, field) == 1)
end

local stored
if schedule.last_job == cjson.null or allows_next_job(encode_id(schedule.last_job)) then
  local codes, holders = enqueue_jobs({ full_name }, position, FIRST_BODY)
  if codes[1] == CREATED or codes[1] == EXISTS or codes[1] == REPLACED then
    stored = holders[1] or get_new_id(body)
  end
end
schedule.last_tick, schedule.last_job = tick, stored and decode_id(stored) or schedule.last_job
write_version(record_field, record, nil, cjson.encode(schedule))
write_lane_counts()
notify_marked()
return { stored and 'fired' or 'skipped', stored or '' }
