-- Shared part of enqueue and fire: stores new jobs, gives a waiting job what a new job of the same unique key brings, or says why it
-- does neither.
-- Keys: counters lane_number lane_name job job_seq payload ready scheduled lane_counts attempt_state replacement replacement_expiry
-- Provides: enqueue_jobs(names, positions, first, past, is_same_flow) -> codes, holders, suspended, the seq before the first new job
--   past: {index of a job: true}: these were stored before, and may have been deleted. nil: none
--   is_same_flow(field, new_body): whether a stored job is in the flow of the new one. nil: it does not matter
--   names: the full lane names
--   positions: 12 bytes per job: index in `names` 2 | rank 1 | mode 1 | value 8. Mode DUE_AT: due at the time `value`. Mode DUE_AFTER:
--     due `value` microseconds from now.
--   ARGV[first...]: the body of each job without its first 20 bytes (see record_format.lua), then the large payloads, in order
--   codes: one per job: CREATED, EXISTS, REPLACED, CONFLICT, TAKEN (the unique key), or REFUSED because of another job of the call
--   holders: {index of the job: id of the job that holds its unique key, or that was replaced}
--   suspended: {field, body, ...} of the new jobs with FLAG_SUSPENDED; nil: there are none. The caller adds their conditions.
-- Atomic: all outcomes are decided before anything is written. One CONFLICT or TAKEN refuses all jobs of the call.
--   backends/planning/enqueue.py decides the same in Python.
-- Cost: O(log n) per job, for n waiting jobs.
local REPEAT_WINDOW = 600000000

local function merge_new_jobs(old, new)
  local old_end = NEW_JOB_ID_LENGTH + byte(old, NEW_JOB_ID_LENGTH)
  local new_end = NEW_JOB_ID_LENGTH + byte(new, NEW_JOB_ID_LENGTH)
  local flags = band(byte(new, NEW_JOB_FLAGS), 255 - FLAG_SUSPENDED)
  return string.char(flags) .. sub(new, NEW_JOB_FLAGS + 1, NEW_JOB_DIGEST - 1) .. sub(old, NEW_JOB_DIGEST, old_end) .. sub(new, new_end + 1)
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

local POSITION_SIZE = 12

local function get_new_id(new_body)
  return sub(new_body, NEW_JOB_ID, NEW_JOB_ID_LENGTH + byte(new_body, NEW_JOB_ID_LENGTH))
end

local function get_digest(new_body)
  return sub(new_body, NEW_JOB_DIGEST, NEW_JOB_DIGEST_END)
end

local function get_new_job_flags(new_body)
  return byte(new_body, NEW_JOB_FLAGS)
end

local function get_position(positions, i)
  return sub(positions, POSITION_SIZE * (i - 1) + 1, POSITION_SIZE * i)
end

-- Return lane index, rank, mode and value8 of a position.
local function read_position(position)
  return unpack_struct('>I2c1c1c8', position)
end

local function get_lane_job_name(full)
  return sub(full, string.find(full, '\0', 1, true) + 1)
end

-- Return the id of the job that holds the unique key of a new job (a stored job, or an earlier job of this call), and the index of
-- the earlier job.
local function find_rival(body, name, taken, i)
  local field = get_key_field(body, name)
  local rival = taken[field]
  if rival then
    return rival.id, rival.index
  end
  local holder = find_key_holder(field)
  if not holder then
    taken[field] = { id = get_id(body), index = i }
  end
  return holder
end

local function is_same_body(field, new_body)
  return sub(redis.call('HGET', job_key, field), JOB_DIGEST, JOB_DIGEST_END) == get_digest(new_body)
end

-- Decide about a job with a unique key. `replaced` has the new jobs that replace another one, by id. Return the code, the id of the
-- job that holds the key, and a replacement that is to be made.
local function decide_keyed(new_body, name, i, taken, replaced)
  local flags, id = get_new_job_flags(new_body), get_new_id(new_body)
  local replaces = band(flags, FLAG_REPLACE) ~= 0
  if replaces then
    local known_id, digest
    if replaced[id] then
      known_id, digest = replaced[id].id, get_digest(replaced[id].new_body)
    else
      known_id, digest = find_replacement(id)
    end
    if known_id then
      if digest == get_digest(new_body) then
        return REPLACED, known_id
      end
      return CONFLICT
    end
  end
  local holder, index = find_rival(NO_FRONT .. new_body, name, taken, i)
  if not holder then
    return CREATED
  elseif band(flags, FLAG_ACCEPT_EXISTING) ~= 0 then
    return EXISTS, holder
  elseif replaces and (index or is_waiting(holder)) then
    return REPLACED, holder, { id = holder, index = index, new_body = new_body }
  end
  return TAKEN, holder
end

local function decide_outcomes(names, positions, first, past, is_same_flow)
  local count = #positions / POSITION_SIZE
  local ids, codes, holders, seen, taken, refused = {}, {}, {}, {}, {}, false
  local replacements, replaced = {}, {}
  for i = 1, count do
    ids[i] = get_new_id(ARGV[first + i - 1])
  end
  local known = find_fields(ids)
  for i = 1, count do
    local new_body, id, code = ARGV[first + i - 1], ids[i], CREATED
    if known[i] then
      local is_same = is_same_body(known[i], new_body) and (not is_same_flow or is_same_flow(known[i], new_body))
      code = is_same and EXISTS or CONFLICT
    elseif past and past[i] then
      code = EXISTS
    elseif seen[id] then
      code = get_digest(seen[id]) == get_digest(new_body) and EXISTS or CONFLICT
    elseif band(get_new_job_flags(new_body), FLAG_UNIQUE_KEY) ~= 0 then
      local lane_index = read_position(get_position(positions, i))
      code, holders[i], replacements[i] = decide_keyed(new_body, get_lane_job_name(names[lane_index]), i, taken, replaced)
      replaced[id] = replacements[i] or replaced[id]
    end
    if code == CREATED then
      seen[id] = new_body
    end
    refused = refused or code == CONFLICT or code == TAKEN
    codes[i] = code
  end
  return codes, holders, refused, replacements
end

-- Return the numbers of lanes by full name. New lanes get the next numbers.
local function get_or_add_lanes(names)
  local numbers = redis.call('HMGET', lane_number_key, unpack(names))
  for i, number in ipairs(numbers) do
    if not number then
      number = pack_number(redis.call('HINCRBY', counters_key, 'lane', 1), 'lanes')
      redis.call('HSET', lane_number_key, names[i], number)
      redis.call('HSET', lane_name_key, number, names[i])
      numbers[i] = number
    end
  end
  return numbers
end

-- Return what all jobs of one position have in common: `front`, the first 20 bytes of the body; lane and due time; and what precedes
-- or follows the seq in their members of `ready` or `scheduled`.
local function prepare_position(position, numbers)
  local lane_index, rank, mode, due8 = read_position(position)
  if mode == DUE_AFTER then
    local span = decode_time(due8, 1)
    due8 = span > 0 and encode_time(now + span) or now8
  end
  local lane4 = numbers[lane_index]
  local is_ready = decode_time(due8, 1) <= now
  return {
    front = lane4 .. now8 .. due8, lane = get_lane(lane4), is_ready = is_ready, due8 = due8, rank = rank,
    before_seq = is_ready and lane4 .. rank .. due8 or nil, after_seq = not is_ready and lane4 .. rank .. SCHEDULED or nil,
  }
end

-- Let each new job that a later job of the call replaces have what that one brings. Replace the stored jobs.
local function apply_replacements(replacements, jobs, numbers)
  for i = 1, #jobs do
    local replacement, new = replacements[i], jobs[i]
    if replacement then
      local common = prepare_position(new.position, numbers)
      if replacement.index then
        local old = jobs[replacement.index]
        local lane_index, rank = read_position(new.position)
        local due8 = limit_due(common.due8, now8, new.body)
        old.body, old.payload = merge_new_jobs(old.body, new.body), new.payload
        old.position = pack_struct('>I2', lane_index) .. rank .. DUE_AT .. due8
      else
        local _, rank = read_position(new.position)
        replace_job(replacement.id, new.body, new.payload, common.lane, rank, common.due8)
      end
      put_replacement(new.body, replacement.id)
    end
  end
end

-- Return the jobs of the call: {body, position, payload if it is large}.
local function read_new_jobs(positions, first, count)
  local jobs, next_large_payload = {}, first + count
  for i = 1, count do
    local job = { body = ARGV[first + i - 1], position = get_position(positions, i) }
    if band(get_new_job_flags(job.body), FLAG_LARGE_PAYLOAD) ~= 0 then
      job.payload, next_large_payload = ARGV[next_large_payload], next_large_payload + 1
    end
    jobs[i] = job
  end
  return jobs
end

local function enqueue_jobs(names, positions, first, past, is_same_flow)
  local codes, holders, refused, replacements = decide_outcomes(names, positions, first, past, is_same_flow)
  if refused then
    for i, code in ipairs(codes) do
      if code ~= CONFLICT and code ~= TAKEN then
        codes[i], holders[i] = REFUSED, nil
      end
    end
    return codes, holders
  end
  local created = 0
  for _, code in ipairs(codes) do
    created = created + (code == CREATED and 1 or 0)
  end
  if created == 0 and not next(replacements) then
    return codes, holders
  end
  local numbers = get_or_add_lanes(names)
  local new_jobs -- only if a job of the call is replaced
  if next(replacements) then
    new_jobs = read_new_jobs(positions, first, #codes)
    apply_replacements(replacements, new_jobs, numbers)
    if created == 0 then
      write_turns()
      return codes, holders
    end
  end
  local seq = redis.call('HINCRBY', counters_key, 'seq', created) - created
  local seq_before = seq
  local jobs, ids, ready, scheduled, prepared, suspended = {}, {}, {}, {}, {}, nil
  local next_large_payload = first + #codes
  for i, code in ipairs(codes) do
    local new_body, payload, position = ARGV[first + i - 1], nil, nil
    if new_jobs then
      new_body, payload, position = new_jobs[i].body, new_jobs[i].payload, new_jobs[i].position
    end
    local flags = get_new_job_flags(new_body)
    if not new_jobs and band(flags, FLAG_LARGE_PAYLOAD) ~= 0 then
      payload, next_large_payload = ARGV[next_large_payload], next_large_payload + 1
    end
    if code == CREATED then
      position = position or get_position(positions, i)
      local common = prepared[position]
      if not common then
        common = prepare_position(position, numbers)
        prepared[position] = common
      end
      local lane = common.lane
      seq = seq + 1
      local field = pack_struct('>I8', seq)
      push_pair(jobs, field, common.front .. new_body)
      push_pair(ids, get_new_id(new_body), shorten_field(field))
      local tenant = band(flags, FLAG_TENANT) ~= 0 and get_tenant(jobs[#jobs]) or nil
      if band(flags, FLAG_SUSPENDED) ~= 0 then
        suspended = suspended or {}
        push_pair(suspended, field, jobs[#jobs])
        lane[SUSPENDED] = lane[SUSPENDED] + 1
      elseif common.is_ready then
        mark_queue(lane.queue)
        if tenant then
          add_turn(lane, common.rank, common.due8, field, tenant)
        else
          push_pair(ready, 0, common.before_seq .. field)
        end
        lane[PENDING] = lane[PENDING] + 1
      else
        mark_queue(lane.queue)
        push_pair(scheduled, 0, common.due8 .. field .. common.after_seq .. get_tenant_suffix(tenant))
        lane[SCHEDULED] = lane[SCHEDULED] + 1
      end
      if payload then
        redis.call('HSET', payload_key, field, payload)
      end
      if band(flags, FLAG_UNIQUE_KEY) ~= 0 then
        take_key(jobs[#jobs], lane.name)
      end
    end
  end
  redis.call('HSET', job_key, unpack(jobs))
  redis.call('HSET', job_seq_key, unpack(ids))
  if #ready > 0 then
    redis.call('ZADD', ready_key, unpack(ready))
  end
  if #scheduled > 0 then
    redis.call('ZADD', scheduled_key, unpack(scheduled))
  end
  write_turns()
  return codes, holders, suspended, seq_before
end
