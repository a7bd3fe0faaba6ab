-- read_run: returns the steps and the unread signals of a durable run behind a place.
-- Keys: job_seq run_entry run_order
-- Arguments: ARGV[3] id, [4] number of the first step in 4 bytes, [5] number of the first signal in 4 bytes, [6] the most entries,
--   [7] bytes after which no more are returned
-- Reply: nil if there is no such job, else {kind s (step) or u (signal) | number 4 | name of the signal, time 8 | body or payload, ...},
--   steps first
-- Atomic: reads only; everything is of the same moment.
-- Cost: O(log n) per entry, for n steps and signals.
local field, left, bytes = find_field(ARGV[3]), tonumber(ARGV[6]), tonumber(ARGV[7])
if not field then
  return nil
end
local found = {}

local function add_entries(kind, first4)
  local low, high = '[' .. field .. kind .. first4, '(' .. field .. string.char(string.byte(kind) + 1)
  for _, member in ipairs(redis.call('ZRANGEBYLEX', run_order_key, low, high, 'LIMIT', 0, left)) do
    if bytes < 0 then
      return
    end
    local entry = redis.call('HGET', run_entry_key, string.sub(member, 1, 13))
    found[#found + 1] = string.sub(member, 9)
    found[#found + 1] = entry
    left, bytes = left - 1, bytes - #entry
  end
end

add_entries('s', ARGV[4])
if left > 0 then
  add_entries('u', ARGV[5])
end
return found
