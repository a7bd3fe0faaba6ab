-- Shared part: reads and writes records (see core/records.py).
-- Keys: record record_due
-- Provides: get_record_field(kind, id) -> field of `record`; read_record(field) -> the record, or nil; write_record(field, record) ->
--   the stored record; write_version(field, record, due, body) -> the stored record, with the next version
-- Cost: O(log n) for n records with a due time.
--
-- A record is a map in MessagePack: kind, id, position, version, created_at, due, changed, held, body (JSON). `due` is missing if
-- it is never due. Times are in microseconds.
local function get_record_field(kind, id)
  return kind .. '\0' .. id
end

local function read_record(field)
  local packed = redis.call('HGET', record_key, field)
  return packed and cmsgpack.unpack(packed) or nil
end

local function write_record(field, record)
  local packed = cmsgpack.pack(record)
  redis.call('HSET', record_key, field, packed)
  if record.due then
    redis.call('ZADD', record_due_key, record.due, field)
  else
    redis.call('ZREM', record_due_key, field)
  end
  return packed
end

local function write_version(field, record, due, body)
  record.version, record.due, record.body = record.version + 1, due, body
  return write_record(field, record)
end
