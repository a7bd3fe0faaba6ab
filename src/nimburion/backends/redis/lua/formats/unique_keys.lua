-- Shared part: takes and releases unique keys. The scope of a key is (job name, key).
-- Keys: unique_key unique_expiry
-- Provides: get_key_field(body, name) -> field of `unique_key`; the body has FLAG_UNIQUE_KEY, `name` is the job name
--   read_unique_key(entry) -> expiry8, id, states; take_key(body, name), release_key(body, name)
--   free_keys(): deletes the keys that release_key released
-- Idle: free_keys
-- Cost: O(1) per key; O(log n) with a span, for n keys with a span.
local freed, taken = {}, {}

-- Return the unique key of a job, its span 8, its max wait 8 and the codes of the states in which the job holds it.
local function read_key_options(body)
  local offset = find_key_offset(body)
  local length = unpack_struct('>I2', body, offset)
  local key, span8, max_wait8, count, rest = unpack_struct('>c' .. length .. 'c8c8B', body, offset + 2)
  return key, span8, max_wait8, sub(body, rest, rest + count - 1)
end

local function get_key_field(body, name)
  return name .. '\0' .. (read_key_options(body))
end

-- Return expiry8, id and states of an entry of `unique_key`.
local function read_unique_key(entry)
  local expiry8, count, rest = unpack_struct('>c8B', entry)
  return expiry8, sub(entry, rest + count), sub(entry, rest, rest + count - 1)
end

local function take_key(body, name)
  local key, span8, _, states = read_key_options(body)
  local field, expiry8 = name .. '\0' .. key, NEVER
  if span8 ~= NEVER then
    local expiry = now + decode_time(span8, 1)
    expiry8 = encode_time(expiry)
    redis.call('ZADD', unique_expiry_key, expiry, field)
  else
    redis.call('ZREM', unique_expiry_key, field)
  end
  freed[field], taken[field] = nil, get_id(body)
  redis.call('HSET', unique_key_key, field, expiry8 .. string.char(#states) .. states .. get_id(body))
end

-- Release the key of a finished job, unless the key has a span. Return whether it was released.
local function release_key(body, name)
  local field = get_key_field(body, name)
  local entry = redis.call('HGET', unique_key_key, field)
  if not entry then
    return false
  end
  local expiry8, id = read_unique_key(entry)
  if expiry8 == NEVER and id == get_id(body) then
    freed[field], taken[field] = true, nil
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
