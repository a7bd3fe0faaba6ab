-- Shared part: finds jobs by id.
-- Keys: job_seq
-- Provides: find_field(id) and find_fields(ids): the field (seq) of each job, false for an unknown id. shorten_field(field): the
--   value that `job_seq` stores.
-- Cost: O(1) per id.
--
-- The two high bytes of a seq are always 0, because no backend stores 2^48 jobs. job_seq omits them: a value of 8 bytes would take
-- 8 bytes more memory.
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
