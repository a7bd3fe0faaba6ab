-- start_bulk_operation: adds a bulk operation, unless one with this id is kept. The oldest one beyond the maximum is deleted.
-- Keys: counters bulk_operation bulk_operation_number
-- Arguments: ARGV[3] id, [4] what is started (JSON), [5] maximum number of operations
-- Reply: the record; or {id of the oldest operation}, if that one still runs: then nothing was added
-- Atomic: one script.
-- Cost: O(1). The numbers of the kept operations have no gaps, so the oldest is found without a scan.
local id, body, most = ARGV[3], ARGV[4], tonumber(ARGV[5])
local number = redis.call('HGET', bulk_operation_number_key, id)
if number then
  return redis.call('HGET', bulk_operation_key, number)
end
local newest = tonumber(redis.call('HGET', counters_key, 'bulk_operation') or 0)
local oldest = newest + 1 - most
if redis.call('HEXISTS', bulk_operation_key, oldest) == 1 then
  local surplus = read_bulk_operation(oldest)
  if surplus.state == RUNNING then
    return { surplus.id }
  end
  redis.call('HDEL', bulk_operation_number_key, surplus.id)
  redis.call('HDEL', bulk_operation_key, oldest)
end
number = redis.call('HINCRBY', counters_key, 'bulk_operation', 1)
redis.call('HSET', bulk_operation_number_key, id, number)
return write_bulk_operation(number, {
  id = id, body = body, state = RUNNING, started_at = now, due = now, fence = 0,
  done = 0, skipped = 0, failed = 0, error = '', exhausted = false,
})
