-- put_statistics: stores counters of some intervals.
-- Keys: statistics
-- Arguments: KEYS[2...] the hashes of the intervals (after the key above). Per hash from ARGV[3] on: when it expires in seconds since
--   1970, number of rows, and per row its field (queue NUL job name NUL source) and its counters (JSON)
-- Reply: none
-- Atomic: one script. Each row replaces the row with the same field.
-- Cost: O(rows).
local at = 3
for i = 2, #KEYS do
  local life, count = tonumber(ARGV[at]) - now / 1000000, tonumber(ARGV[at + 1])
  if life > 0 then
    redis.call('HSET', KEYS[i], unpack(ARGV, at + 2, at + 1 + 2 * count))
    redis.call('EXPIRE', KEYS[i], math.ceil(life))
  end
  at = at + 2 + 2 * count
end
