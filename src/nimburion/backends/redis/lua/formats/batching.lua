-- Shared part: lists of values to write, and commands with more values than one call accepts.
-- Provides: push, push_pair, call_in_batches, get_in_batches
-- Cost: one command per 2,000 values. Lua's `unpack` cannot pass many more to one call.
local function push(list, value)
  list[#list + 1] = value
end

local function push_pair(list, first, second)
  local n = #list
  list[n + 1], list[n + 2] = first, second
end

-- Call a command with all values of a list. The batch size is even, so pairs stay together.
local function call_in_batches(command, key, list)
  local count = #list
  for first = 1, count, 2000 do
    redis.call(command, key, unpack(list, first, math.min(first + 1999, count)))
  end
end

-- Return the values of a hash for all fields of a list; false for a missing one.
local function get_in_batches(key, fields)
  local count = #fields
  if count <= 2000 then
    return count > 0 and redis.call('HMGET', key, unpack(fields)) or {}
  end
  local values = {}
  for first = 1, count, 2000 do
    for i, value in ipairs(redis.call('HMGET', key, unpack(fields, first, math.min(first + 1999, count)))) do
      values[first + i - 1] = value
    end
  end
  return values
end
