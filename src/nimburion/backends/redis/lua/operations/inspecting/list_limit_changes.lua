-- list_limit_changes: returns the changes of limits that are in force.
-- Keys: limit_change
-- Reply: {time 8 and change (see record_format.lua), ...}
-- Atomic: reads only.
-- Cost: O(changes).
return redis.call('HVALS', limit_change_key)
