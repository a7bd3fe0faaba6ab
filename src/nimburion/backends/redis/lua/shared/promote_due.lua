-- Shared part of exchange and promote: moves due jobs from `scheduled` to `ready`, or to the turns of their tenants.
-- Keys: scheduled ready
-- Provides: promote_due(most) -> number of jobs moved, earliest due time first, their number by queue, and whether more may be due. It leaves
--     durable runs (see list_due).
--   has_due_runs() -> whether a durable run is due. If not, promote_due moves the jobs that it has read: call nothing that adds to
--     `scheduled` in between.
--   get_next_due() -> due time 8, or ''
-- A member of `scheduled` holds all that the member of `ready` needs, so the job itself is not read.
-- Cost: O(log n) per job, for n waiting jobs.
local next_due8 -- of the first job, if read_due has found that no job is due
local due_members -- what has_due_runs has read

local function read_first_due()
  local first = redis.call('ZRANGE', scheduled_key, 0, 0)[1]
  return first and (read_scheduled(first)) or ''
end

-- Return the members that are due, earliest first.
local function read_due()
  local first_due8 = read_first_due()
  if first_due8 == '' or decode_time(first_due8, 1) > now then
    next_due8 = first_due8
    return {}
  end
  return redis.call('ZRANGEBYLEX', scheduled_key, '-', '(' .. encode_time(now + 1), 'LIMIT', 0, MAX_DUE)
end

local function has_due_runs()
  due_members = read_due()
  for _, member in ipairs(due_members) do
    if sub(member, SCHEDULED_END, SCHEDULED_END) == SUSPENDED then
      due_members = nil
      return true
    end
  end
  return false
end

local function promote_due(most)
  local members, moved, ready, by_queue = due_members or read_due(), {}, {}, {}
  for _, member in ipairs(members) do
    local due8, field, lane4, rank, code, tenant = read_scheduled(member)
    if code ~= SUSPENDED and #moved < most then
      local lane, ready_code = get_lane(lane4), code == RETRY_SCHEDULED and RETRYING or PENDING
      if tenant then
        add_turn(lane, rank, due8, field, tenant)
      else
        push_pair(ready, 0, lane4 .. rank .. due8 .. field)
      end
      lane[code], lane[ready_code] = lane[code] - 1, lane[ready_code] + 1
      by_queue[lane.queue] = (by_queue[lane.queue] or 0) + 1
      push(moved, member)
    end
  end
  call_in_batches('ZREM', scheduled_key, moved)
  call_in_batches('ZADD', ready_key, ready)
  return #moved, by_queue, #members == MAX_DUE
end

local function get_next_due()
  return next_due8 or read_first_due()
end
