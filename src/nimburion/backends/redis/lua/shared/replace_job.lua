-- Shared part of enqueue and fire: gives a waiting job what a new job of the same unique key brings.
-- Keys: job payload attempt_state ready scheduled replacement replacement_expiry
-- Provides: merge_new_jobs(old, new): the new job `old` with flags, priority, options and payload of `new`. It keeps its id and its
--   digest, so that its own enqueue can be repeated.
--   limit_due(due8, created8, new_body): the due time, or an earlier one because of the max wait of the new job
--   replace_job(id, new_body, payload, lane, rank, due8): `payload` is a large payload or nil; lane, rank and due time are
--   those of the new job. A job that has failed keeps its due time, if that is later.
--   put_replacement(new_body, id): a repeat of the enqueue of `new_body` is recognised for a time
-- Atomic: the caller has decided that the job waits, and that nothing refuses the call. It then calls write_turns().
-- Cost: O(log n) for n waiting jobs.
local REPEAT_WINDOW = 600000000

local function merge_new_jobs(old, new)
  local old_end = NEW_JOB_ID_LENGTH + byte(old, NEW_JOB_ID_LENGTH)
  local new_end = NEW_JOB_ID_LENGTH + byte(new, NEW_JOB_ID_LENGTH)
  return sub(new, 1, NEW_JOB_DIGEST - 1) .. sub(old, NEW_JOB_DIGEST, old_end) .. sub(new, new_end + 1)
end

local function limit_due(due8, created8, new_body)
  local _, _, max_wait8 = read_key_options(NO_FRONT .. new_body)
  if max_wait8 == NEVER then
    return due8
  end
  local latest = math.max(now, decode_time(created8, 1) + decode_time(max_wait8, 1))
  return decode_time(due8, 1) > latest and encode_time(latest) or due8
end

-- Remove a waiting job from its place.
local function remove_waiting(field, body, lane, rank, due8, failed)
  local code, member, tenant = failed and RETRYING or PENDING, lane.number .. rank .. due8 .. field, get_tenant(body)
  if drop_parked(member) then
    lane[code] = lane[code] - 1
    return
  end
  pass_turns(body, lane)
  if redis.call('ZREM', ready_key, member) == 0 and not (tenant and drop_turn(lane, rank, due8, field, tenant)) then
    code = failed and RETRY_SCHEDULED or SCHEDULED
    redis.call('ZREM', scheduled_key, due8 .. field .. lane.number .. rank .. code .. get_tenant_suffix(tenant))
  end
  lane[code] = lane[code] - 1
end

local function place_waiting(field, lane, rank, due8, failed, tenant)
  local code
  if decode_time(due8, 1) <= now then
    code = failed and RETRYING or PENDING
    if tenant then
      add_turn(lane, rank, due8, field, tenant)
    else
      redis.call('ZADD', ready_key, 0, lane.number .. rank .. due8 .. field)
    end
  else
    code = failed and RETRY_SCHEDULED or SCHEDULED
    redis.call('ZADD', scheduled_key, 0, due8 .. field .. lane.number .. rank .. code .. get_tenant_suffix(tenant))
  end
  lane[code] = lane[code] + 1
end

local function put_replacement(new_body, id)
  local new_id = sub(new_body, NEW_JOB_ID, NEW_JOB_ID_LENGTH + byte(new_body, NEW_JOB_ID_LENGTH))
  local expiry = now + REPEAT_WINDOW
  local digest = sub(new_body, NEW_JOB_DIGEST, NEW_JOB_DIGEST_END)
  redis.call('HSET', replacement_key, new_id, encode_time(expiry) .. digest .. id)
  redis.call('ZADD', replacement_expiry_key, expiry, new_id)
end

local function replace_job(id, new_body, payload, lane, rank, due8)
  local field = find_field(id)
  local body, state = redis.call('HGET', job_key, field), redis.call('HGET', attempt_state_key, field)
  local attempts = state and read_attempt_state(state)
  local old_due8 = attempts and attempts.due8 or get_due(body)
  local failed = attempts and has_failures(attempts.counts) or false
  remove_waiting(field, body, get_lane(get_lane_number(body)), get_rank(body), old_due8, failed)
  due8 = limit_due(due8, sub(body, JOB_LANE_END + 1, JOB_CREATED_END), new_body)
  if failed and old_due8 > due8 then
    due8 = old_due8
  end
  local merged = lane.number .. sub(body, JOB_LANE_END + 1, JOB_CREATED_END) .. due8
    .. merge_new_jobs(sub(body, JOB_FLAGS), new_body)
  redis.call('HSET', job_key, field, merged)
  if payload then
    redis.call('HSET', payload_key, field, payload)
  elseif has_flag(body, FLAG_LARGE_PAYLOAD) then
    redis.call('HDEL', payload_key, field)
  end
  if attempts then
    redis.call('HSET', attempt_state_key, field, make_attempt_state(attempts, due8))
  end
  place_waiting(field, lane, rank, due8, failed, get_tenant(merged))
  mark_queue(lane.queue)
  take_key(merged, lane.name)
end
