-- merge_statistics: replaces the rows of all sources of one interval by their sums, and notes that it is done.
-- Keys: statistics statistics_merged
-- Arguments: KEYS[3] the hash of the interval, if there is something to merge. ARGV[3] step, [4] start of the interval in seconds since
--   1970, [5] when the hash expires, [6] number of fields to delete, [7...] these fields, then per sum its field and its counters
-- Reply: none
-- Atomic: one script. No source stores a row of so old an interval, so two clients that merge it write the same.
-- Cost: O(rows).
local step, start, count = ARGV[3], ARGV[4], tonumber(ARGV[6])
local life = tonumber(ARGV[5]) - now / 1000000
if #KEYS == 3 and life > 0 then
  local dropped, sums = {}, {}
  for i = 7, 6 + count do
    push(dropped, ARGV[i])
  end
  for i = 7 + count, #ARGV do
    push(sums, ARGV[i])
  end
  call_in_batches('HSET', KEYS[3], sums)
  call_in_batches('HDEL', KEYS[3], dropped)
  redis.call('EXPIRE', KEYS[3], math.ceil(life))
end
redis.call('HSET', statistics_merged_key, step, start)
