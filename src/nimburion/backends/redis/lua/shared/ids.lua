-- Part of scripts that are given ids: which job an id belongs to.
-- Keys: id
-- Inputs: packed ids
-- Result: field_of(id) and fields_of(ids): fields, false for unknown ids; short(field): what the hash id keeps
--
-- The two high bytes of a seq are always 0 (2^48 jobs are many), and left out: with eight the value would take 8 bytes more.
local function short(field)
  return string.sub(field, 3)
end

local function field_of(id)
  local low = redis.call('HGET', id_key, id)
  return low and '\0\0' .. low
end

local function fields_of(ids, first, last)
  local fields = redis.call('HMGET', id_key, unpack(ids, first or 1, last or #ids))
  for i, low in ipairs(fields) do
    fields[i] = low and '\0\0' .. low
  end
  return fields
end
