-- Shared part of the exchange: stores steps of durable runs, many with one command.
-- Keys: job run_entry run_order
-- Provides: record_steps(settled, session4, next_extra) -> a code for each settlement that it has applied (see settle.lua), and whether these
--   are all. `settled`: what read_settled has read
--   It leaves the steps that take a signal, reset failures, or come after the end of their lease. If a step removes others, it leaves all.
-- Atomic: what it writes cannot fail.
-- Cost: O(log n) per step, for n of them.
-- A step without a signal that does not remove others: see record_step
local PLAIN_STEP = '\0\0\0\0' .. '0'

-- Return how many other values a settlement of this kind has.
local function count_extras(kind)
  if kind == KIND_COMPLETED or kind == KIND_KEPT or kind == KIND_RELEASED or kind == KIND_UNSTARTED then
    return 0
  end
  return kind == KIND_FAILED and 3 or kind == KIND_RETRIED and 2 or 1
end

-- Store the steps that their runs do not have.
local function add_steps(names, entries)
  local new_entries, members, seen = {}, {}, {}
  for i, stored in ipairs(get_in_batches(run_entry_key, names)) do
    local name = names[i]
    if not stored and not seen[name] then
      seen[name] = true
      push_pair(new_entries, name, entries[i])
      push_pair(members, 0, name)
    end
  end
  call_in_batches('HSET', run_entry_key, new_entries)
  call_in_batches('ZADD', run_order_key, members)
end

local function record_steps(settled, session4, next_extra)
  local kinds, fields, tokens, leases = settled.kinds, settled.fields, settled.tokens, settled.leases
  local codes, names, entries, ended = {}, {}, {}, {}
  for i, kind in ipairs(kinds) do
    local field = fields[i]
    if kind == KIND_RECORDED then
      local record, packed = leases[i], ARGV[next_extra]
      if sub(packed, 9, 9) == '1' then
        return {}, false
      end
      if record and not ended[field] and sub(record, 1, LEASE_TOKEN_END) == session4 .. tokens[i]
        and sub(record, LEASE_CANCEL + 1, LEASE_CANCEL + #NO_COUNTS) == NO_COUNTS and sub(packed, 5, 9) == PLAIN_STEP then
        push(names, field .. STEP_ENTRY .. sub(packed, 1, 4))
        push(entries, now8 .. sub(packed, 10))
        codes[i] = SETTLED_DONE
      end
    elseif kind ~= KIND_PROGRESSED and kind ~= KIND_SPENT then
      ended[field] = true
    end
    next_extra = next_extra + count_extras(kind)
  end
  add_steps(names, entries)
  return codes, #names == #kinds
end
