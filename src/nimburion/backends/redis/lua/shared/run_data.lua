-- Shared part: the steps and the signals of durable runs.
-- Keys: run_entry run_order removed_run
-- Provides: record_step(field, packed) -> whether the step was stored: the run has none with its number
--     packed: number 4 | number of the signal that it takes 4 (zeros: none) | 1 if all other steps are removed, else 0 | body
--   add_signal(field, id, name, payload) -> SIGNAL_STORED, SIGNAL_EXISTS or SIGNAL_FULL
--   forget_taken_signals(field): removes the ids of signals that were taken and after which MAX_UNREAD_SIGNALS others came
--   needs_cleanup(field) -> whether a worker ends the run when it is cancelled; ask_to_end(field) -> the same. The run then has the signal
--     that asks it to end.
--   read_unread_names(field): the names of the unread signals, as a set
--   remove_runs(fields): removes the steps and the signals of deleted jobs. What is left after MAX_REMOVED of them is in `removed_run`.
-- Atomic: what these functions write cannot fail.
-- Cost: O(log n) per step and signal, for n of them. To suspend a run, O(1) more per unread signal.
local STEP_ENTRY, SIGNAL_ENTRY, SIGNAL_ID_ENTRY = 's', 'u', 'i'
local NO_SIGNAL, CANCEL_SIGNAL = '\0\0\0\0', ''
-- As in core/runs.py
local MAX_UNREAD_SIGNALS = 1000
local MAX_REMOVED = 1000
-- Size of the field of an entry: seq, kind and number
local ENTRY_SIZE = 13

-- Return the range of a kind of members of `run_order`, for ZRANGEBYLEX.
local function get_entry_range(field, kind)
  return '[' .. field .. kind, '(' .. field .. string.char(byte(kind) + 1)
end

local function drop_entries(members)
  local fields = {}
  for _, member in ipairs(members) do
    local is_id = sub(member, 9, 9) == SIGNAL_ID_ENTRY
    push(fields, is_id and sub(member, 1, 9) .. sub(member, ENTRY_SIZE + 1) or sub(member, 1, ENTRY_SIZE))
  end
  call_in_batches('HDEL', run_entry_key, fields)
  call_in_batches('ZREM', run_order_key, members)
end

local function record_step(field, packed)
  local number4, takes4, forgets, rest = unpack_struct('>c4c4c1', packed)
  local step = field .. STEP_ENTRY .. number4
  if redis.call('HEXISTS', run_entry_key, step) == 1 then
    return false
  end
  if forgets == '1' then
    drop_entries(redis.call('ZRANGEBYLEX', run_order_key, get_entry_range(field, STEP_ENTRY)))
  end
  redis.call('HSET', run_entry_key, step, now8 .. sub(packed, rest))
  redis.call('ZADD', run_order_key, 0, step)
  if takes4 ~= NO_SIGNAL then
    local signal = field .. SIGNAL_ENTRY .. takes4
    drop_entries(redis.call('ZRANGEBYLEX', run_order_key, '[' .. signal, '(' .. signal .. '\255'))
  end
  return true
end

local signal_counts = {}

-- Return the number of the last signal of a job, and how many are unread.
local function count_signals(field)
  if not signal_counts[field] then
    local low, high = get_entry_range(field, SIGNAL_ID_ENTRY)
    local last = redis.call('ZREVRANGEBYLEX', run_order_key, high, low, 'LIMIT', 0, 1)[1]
    signal_counts[field] = {
      last = last and unpack_struct('>I4', sub(last, 10, ENTRY_SIZE)) or 0,
      unread = redis.call('ZLEXCOUNT', run_order_key, get_entry_range(field, SIGNAL_ENTRY)),
    }
  end
  return signal_counts[field]
end

local function read_unread_names(field)
  local names = {}
  for _, member in ipairs(redis.call('ZRANGEBYLEX', run_order_key, get_entry_range(field, SIGNAL_ENTRY))) do
    names[sub(member, ENTRY_SIZE + 1)] = true
  end
  return names
end

local function has_signal_id(field, id)
  return redis.call('HEXISTS', run_entry_key, field .. SIGNAL_ID_ENTRY .. id) == 1
end

local function store_signal(field, id, name, payload)
  local counts = count_signals(field)
  counts.last, counts.unread = counts.last + 1, counts.unread + 1
  local number4 = pack_struct('>I4', counts.last)
  local signal = field .. SIGNAL_ENTRY .. number4
  redis.call('HSET', run_entry_key, signal, now8 .. payload, field .. SIGNAL_ID_ENTRY .. id, '')
  redis.call('ZADD', run_order_key, 0, field .. SIGNAL_ID_ENTRY .. number4 .. id, 0, signal .. name)
end

local function add_signal(field, id, name, payload)
  if has_signal_id(field, id) then
    return SIGNAL_EXISTS
  end
  -- The signal that asks the run to end does not count.
  local unread = count_signals(field).unread
  if unread > MAX_UNREAD_SIGNALS or unread == MAX_UNREAD_SIGNALS and not read_unread_names(field)[CANCEL_SIGNAL] then
    return SIGNAL_FULL
  end
  store_signal(field, id, name, payload)
  return SIGNAL_STORED
end

local function forget_taken_signals(field)
  local old = count_signals(field).last - MAX_UNREAD_SIGNALS
  if old <= 0 then
    return
  end
  local taken, ids = {}, field .. SIGNAL_ID_ENTRY
  for _, member in ipairs(redis.call('ZRANGEBYLEX', run_order_key, '[' .. ids, '(' .. ids .. pack_struct('>I4', old + 1))) do
    local signal = field .. SIGNAL_ENTRY .. sub(member, 10, ENTRY_SIZE)
    if #member > ENTRY_SIZE and redis.call('HEXISTS', run_entry_key, signal) == 0 then
      push(taken, member)
    end
  end
  drop_entries(taken)
end

local function needs_cleanup(field)
  return redis.call('HEXISTS', run_entry_key, field .. STEP_ENTRY .. CLEANUP_STEP) == 1
end

local function ask_to_end(field)
  if not needs_cleanup(field) then
    return false
  end
  if not has_signal_id(field, CANCEL_SIGNAL) then
    store_signal(field, CANCEL_SIGNAL, CANCEL_SIGNAL, '')
  end
  return true
end

local function remove_runs(fields)
  if redis.call('EXISTS', run_order_key) == 0 then
    return
  end
  local left, unfinished, finished = MAX_REMOVED, {}, {}
  for _, field in ipairs(fields) do
    local members = redis.call('ZRANGEBYLEX', run_order_key, '[' .. field, '(' .. field .. '\255', 'LIMIT', 0, left + 1)
    if #members > left then
      members[#members] = nil
      push_pair(unfinished, 0, field)
    else
      push(finished, field)
    end
    drop_entries(members)
    left = left - #members
  end
  call_in_batches('ZADD', removed_run_key, unfinished)
  call_in_batches('ZREM', removed_run_key, finished)
end
