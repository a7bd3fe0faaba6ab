-- list_limit_changes: returns the changes of limits that are in force.
-- Keys: limit_change
-- Reply: {time 8 and change (see record_format.lua), ...}
-- Atomic: reads only.
-- Cost: O(changes).
local changes, flat = {}, redis.call('HGETALL', limit_change_key)
for i = 2, #flat, 2 do
  changes[i / 2] = flat[i]
end
return changes
