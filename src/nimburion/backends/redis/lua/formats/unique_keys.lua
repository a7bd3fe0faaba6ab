-- Shared part: takes and releases unique keys. The scope of a key is (job name, key).
-- Keys: unique_key unique_expiry
-- Provides: get_key_field(body, name) -> field of `unique_key`, span 8; the body has FLAG_UNIQUE_KEY, `name` is the job name
--   find_key_holder(field), take_key(body, name), release_key(body, name)
--   free_keys(): deletes the keys that release_key released
-- Cost: O(1) per key; O(log n) with a span, for n keys with a span.
local freed = {}

local function get_key_field(body, name)
  local offset = find_key_offset(body)
  local length = unpack_struct('>I2', body, offset)
  local key, span8 = unpack_struct('>c' .. length .. 'c8', body, offset + 2)
  return name .. '\0' .. key, span8
end

-- Return expiry8 and id of an entry of `unique_key`.
local function read_unique_key(entry)
  return sub(entry, 1, 8), sub(entry, 9)
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
  local expiry8, id = read_unique_key(entry)
  if expiry8 ~= NEVER and decode_time(expiry8, 1) <= now then
    return nil
  end
  return id
end

local function take_key(body, name)
  local field, span8 = get_key_field(body, name)
  local expiry8 = NEVER
  if span8 ~= NEVER then
    local expiry = now + decode_time(span8, 1)
    expiry8 = encode_time(expiry)
    redis.call('ZADD', unique_expiry_key, expiry, field)
  else
    redis.call('ZREM', unique_expiry_key, field)
  end
  freed[field] = nil
  redis.call('HSET', unique_key_key, field, expiry8 .. get_id(body))
end

-- Release the key of a finished job, unless the key has a span. Return whether it was released.
local function release_key(body, name)
  local field = get_key_field(body, name)
  local expiry8, id = read_unique_key(redis.call('HGET', unique_key_key, field) or '')
  if expiry8 == NEVER and id == get_id(body) then
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
