-- Shared part: takes and releases unique keys. The scope of a key is (job name, key).
-- Keys: unique_key unique_expiry
-- Provides: get_key_field(body, name) -> field of `unique_key`, span 8; the body has FLAG_UNIQUE_KEY, `name` is the job name
--   find_key_holder(field), take_key(body, name), release_key(body, name)
--   free_keys(): deletes the keys that release_key released
-- Cost: O(1) per key; O(log n) with a span, for n keys with a span.
local freed = {}

local function get_key_field(body, name)
  local at = find_key_offset(body)
  local length = string.byte(body, at)
  return name .. '\0' .. string.sub(body, at + 1, at + length), string.sub(body, at + 1 + length, at + 8 + length)
end

-- Return the id of the job that holds a key now, or nil.
local function find_key_holder(field)
  if freed[field] then
    return nil
  end
  local entry = redis.call('HGET', unique_key_key, field)
  if not entry then
    return nil
  end
  local till = string.sub(entry, 1, 8)
  if till ~= NEVER and decode_time(till, 1) <= now then
    return nil
  end
  return string.sub(entry, 9)
end

local function take_key(body, name)
  local field, span = get_key_field(body, name)
  local till = NEVER
  if span ~= NEVER then
    local at = now + decode_time(span, 1)
    till = encode_time(at)
    redis.call('ZADD', unique_expiry_key, at, field)
  else
    redis.call('ZREM', unique_expiry_key, field)
  end
  freed[field] = nil
  redis.call('HSET', unique_key_key, field, till .. get_id(body))
end

-- Release the key of a finished job, unless the key has a span. Return whether it was released.
local function release_key(body, name)
  local field = get_key_field(body, name)
  local entry = redis.call('HGET', unique_key_key, field)
  if entry and string.sub(entry, 1, 8) == NEVER and string.sub(entry, 9) == get_id(body) then
    freed[field] = true
    return true
  end
  return false
end

local function free_keys()
  local fields = {}
  for field in pairs(freed) do
    push(fields, field)
  end
  call_in_batches('HDEL', unique_key_key, fields)
  freed = {}
end
