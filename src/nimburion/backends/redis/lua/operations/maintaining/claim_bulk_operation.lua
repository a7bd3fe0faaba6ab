-- claim_bulk_operation: claims the next step of the running operation that has been due for the longest time.
-- Keys: bulk_operation bulk_operation_due
-- Arguments: ARGV[3] for how many microseconds
-- Reply: the record, if a step is due; else the microseconds until one is due, -1 if no operation runs
-- Atomic: one script.
-- Cost: O(log n) for n running operations.
local first = redis.call('ZRANGE', bulk_operation_due_key, 0, 0, 'WITHSCORES')
local number, claimable = first[1], tonumber(first[2])
if not number then
  return -1
end
if claimable > now then
  return claimable - now
end
local operation = read_bulk_operation(number)
operation.fence, operation.leased_until = operation.fence + 1, now + tonumber(ARGV[3])
return write_bulk_operation(number, operation)
