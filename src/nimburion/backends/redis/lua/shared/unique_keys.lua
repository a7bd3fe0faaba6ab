-- Part of scripts that take or free unique keys. Scope: (job name, key).
-- Keys: unique until
-- Inputs: a body with the flag KEY, its job's name
-- Result: holder_of, take_key, free_key; free_keys() writes what free_key decided
--
-- unique: name NUL key -> until 8 (all ones: while its job is unfinished) | id.  until: those with a time, by it.
local freed = {}

local function key_field(body, name)
  local at = key_at(body)
  local length = string.byte(body, at)
  return name .. '\0' .. string.sub(body, at + 1, at + length), string.sub(body, at + 1 + length, at + 8 + length)
end

-- The id of the job that holds a key now, or nil.
local function holder_of(field)
  if freed[field] then
    return nil
  end
  local entry = redis.call('HGET', unique_key, field)
  if not entry then
    return nil
  end
  local till = string.sub(entry, 1, 8)
  if till ~= NEVER8 and micros8(till, 1) <= now then
    return nil
  end
  return string.sub(entry, 9)
end

local function take_key(body, name)
  local field, span = key_field(body, name)
  local till = NEVER8
  if span ~= NEVER8 then
    local at = now + micros8(span, 1)
    till = time8(at)
    redis.call('ZADD', until_key, at, field)
  else
    redis.call('ZREM', until_key, field)
  end
  freed[field] = nil
  redis.call('HSET', unique_key, field, till .. id_of(body))
end

-- Give back the key of a job that has ended, unless it is held for a stated time; whether it was.
local function free_key(body, name)
  local field = key_field(body, name)
  local entry = redis.call('HGET', unique_key, field)
  if entry and string.sub(entry, 1, 8) == NEVER8 and string.sub(entry, 9) == id_of(body) then
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
  each_part('HDEL', unique_key, fields)
  freed = {}
end
