-- cancel_bulk_operation: ends a running bulk operation as cancelled. A claimed step is lost, because the fence rises.
-- Keys: bulk_operation bulk_operation_number
-- Arguments: ARGV[3] id
-- Reply: the record; nil: there is no such operation
-- Atomic: one script. A step comes before or after it.
-- Cost: O(log n) for n running operations.
local number = redis.call('HGET', bulk_operation_number_key, ARGV[3])
if not number then
  return false
end
local operation = read_bulk_operation(number)
if operation.state == RUNNING then
  operation.state, operation.ended_at, operation.fence = 'cancelled', now, operation.fence + 1
  operation.leased_until = nil
end
return write_bulk_operation(number, operation)
