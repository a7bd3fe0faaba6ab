-- Shared part: reads and writes bulk operations.
-- Keys: bulk_operation bulk_operation_due
-- Provides: read_bulk_operation(number), write_bulk_operation(number, operation) -> the stored record
-- Cost: O(log n) for n running operations.
--
-- A record is a map in MessagePack. A field without a value is missing. Times are in microseconds.
local RUNNING = 'running'

local function read_bulk_operation(number)
  return cmsgpack.unpack(redis.call('HGET', bulk_operation_key, number))
end

local function write_bulk_operation(number, operation)
  local record = cmsgpack.pack(operation)
  redis.call('HSET', bulk_operation_key, number, record)
  if operation.state == RUNNING then
    redis.call('ZADD', bulk_operation_due_key, math.max(operation.due, operation.leased_until or operation.due), number)
  else
    redis.call('ZREM', bulk_operation_due_key, number)
  end
  return record
end
