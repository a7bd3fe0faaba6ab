-- Shared part of exchange: the durable runs that come with their leases. The others are read by read_run.
-- Keys: run_entry run_order
-- Provides: read_small_runs(fields, places, most) -> {place, {name, entry, ...}, ...}; nil: there are none
--     fields: of all jobs of the reply; places: those of the jobs that had a lease before; most: the bytes that the reply has left.
--     The names and the entries are those that read_run returns.
-- Cost: O(log n) per job with a lease before, and one command per step and signal, for n steps and signals.
-- As in core/runs.py
local MAX_DELIVERED_RUN = 4096
-- A run with more steps and signals does not come with its lease.
local MAX_ENTRIES = 100
-- Bytes of a name, a time and what the reply says about both
local ENTRY_OVERHEAD = 32

-- Return the steps and the unread signals of a job, and their bytes; nil if there are none, or too many.
local function read_small_run(field)
  local members = redis.call('ZRANGEBYLEX', run_order_key, '[' .. field .. 's', '(' .. field .. 'v', 'LIMIT', 0, MAX_ENTRIES + 1)
  if #members == 0 or #members > MAX_ENTRIES then
    return nil
  end
  local found, size = {}, 0
  for _, member in ipairs(members) do
    local entry = redis.call('HGET', run_entry_key, sub(member, 1, 13))
    size = size + #entry - 8
    if size > MAX_DELIVERED_RUN then
      return nil
    end
    push_pair(found, sub(member, 9), entry)
  end
  return found, size + ENTRY_OVERHEAD * #members
end

local function read_small_runs(fields, places, most)
  local runs = {}
  for _, place in ipairs(places) do
    local run, size = read_small_run(fields[place])
    if run and size <= most then
      most = most - size
      push_pair(runs, place, run)
    end
  end
  return #runs > 0 and runs or nil
end
