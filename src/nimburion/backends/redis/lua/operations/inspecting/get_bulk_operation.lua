-- get_bulk_operation: reads a bulk operation.
-- Keys: bulk_operation bulk_operation_number
-- Arguments: ARGV[3] id
-- Reply: the record; nil: there is no such operation
-- Atomic: reads only.
-- Cost: O(1).
local number = redis.call('HGET', bulk_operation_number_key, ARGV[3])
return number and redis.call('HGET', bulk_operation_key, number)
