-- Part of scripts that are given ids: which job an id belongs to.
-- Keys: job_seq
-- Inputs: packed ids
-- Result: find_field(id) and find_fields(ids): fields, false for unknown ids; short(field): what the hash id keeps
--
-- The two high bytes of a seq are always 0 (2^48 jobs are many), and left out: with eight the value would take 8 bytes more.
local function shorten_field(field)
  return string.sub(field, 3)
end

local function find_field(id)
  local low = redis.call('HGET', job_seq_key, id)
  return low and '\0\0' .. low
end

local function find_fields(ids, first, last)
  local fields = redis.call('HMGET', job_seq_key, unpack(ids, first or 1, last or #ids))
  for i, low in ipairs(fields) do
    fields[i] = low and '\0\0' .. low
  end
  return fields
end
