-- list_statistics: returns the counters of some intervals.
-- Keys: statistics
-- Arguments: KEYS[2...] the hashes of the intervals (after the key above). ARGV[3] queue or '', [4] job name or '', [5] how long
--   intervals are kept, in seconds, [6...] the start of each interval in seconds since 1970
-- Reply: {number of intervals read, {start, field (see put_statistics.lua), counters (JSON), ...}}
-- Atomic: reads only; each interval is of one moment.
-- Cost: O(rows of the intervals). It stops at 256 KiB: about 2 ms.
local MAX_REPLY = 256 * 1024
local queue, name, kept, rows, bytes, read = ARGV[3], ARGV[4], tonumber(ARGV[5]), {}, 0, 0
for i = 2, #KEYS do
  local start = ARGV[4 + i]
  if bytes > MAX_REPLY then
    break
  end
  -- The key of an older interval expires a little later.
  local flat = tonumber(start) >= now / 1000000 - kept and redis.call('HGETALL', KEYS[i]) or {}
  for at = 1, #flat, 2 do
    local field = flat[at]
    local first = string.find(field, '\0', 1, true)
    local second = string.find(field, '\0', first + 1, true)
    if (queue == '' or string.sub(field, 1, first - 1) == queue) and (name == '' or string.sub(field, first + 1, second - 1) == name) then
      push_pair(rows, start, field)
      push(rows, flat[at + 1])
      bytes = bytes + #field + #flat[at + 1]
    end
  end
  read = read + 1
end
return { read, rows }
