-- Part of scripts that collect what they write.
-- Inputs: lists
-- Result: push, push_pair, call_in_batches, gather
local function push(list, value)
  list[#list + 1] = value
end

local function push_pair(list, first, second)
  local n = #list
  list[n + 1], list[n + 2] = first, second
end

-- Call a command with a list that may be longer than one call takes; pairs stay together.
local function call_in_batches(command, key, list)
  local count = #list
  for first = 1, count, 2000 do
    redis.call(command, key, unpack(list, first, math.min(first + 1999, count)))
  end
end

-- The values of a hash for a list of fields that may be longer than one call takes.
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
