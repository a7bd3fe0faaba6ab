-- Shared part: finds the jobs that hold unique keys now, and the enqueues that replaced a job.
-- Keys: job lease attempt_state unique_key replacement
-- Provides: find_key_holder(field) -> id of the job that holds a key, or nil; `field` is a result of get_key_field
--   is_waiting(id): whether a stored job waits
--   find_replacement(id) -> id of the job that an earlier enqueue of `id` replaced, digest of its body; or nil
-- Cost: O(1) per key.
local function find_state_code(id)
  local field = find_field(id)
  local body = field and redis.call('HGET', job_key, field)
  if not body then
    return nil
  end
  return (get_state_code(body, redis.call('HGET', lease_key, field), redis.call('HGET', attempt_state_key, field)))
end

local function is_waiting(id)
  local code = find_state_code(id)
  return code == PENDING or code == SCHEDULED or code == RETRYING
end

local function find_key_holder(field)
  if freed[field] then
    return nil
  end
  if taken[field] then -- by this script, which may not have written the new state of the job yet
    return taken[field]
  end
  local entry = redis.call('HGET', unique_key_key, field)
  if not entry then
    return nil
  end
  local expiry8, id, states = read_unique_key(entry)
  if expiry8 ~= NEVER and decode_time(expiry8, 1) <= now then
    return nil
  end
  if states ~= '' and not string.find(states, find_state_code(id) or '-', 1, true) then
    return nil
  end
  return id
end

local function find_replacement(id)
  local entry = redis.call('HGET', replacement_key, id)
  if not entry then
    return nil
  end
  local expiry8, digest, rest = unpack_struct('>c8c16', entry)
  if decode_time(expiry8, 1) <= now then
    return nil
  end
  return sub(entry, rest), digest
end
