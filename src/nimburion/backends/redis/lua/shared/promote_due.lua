-- Shared part of exchange and promote: moves due jobs from `scheduled` to `ready`, or to the turns of their tenants.
-- Keys: scheduled ready
-- Provides: promote_due(most) -> number of jobs moved, earliest due time first, and their number by queue;
--   get_next_due() -> due time 8, or ''
-- A member of `scheduled` holds all that the member of `ready` needs, so the job itself is not read.
-- Cost: O(log n) per job, for n waiting jobs.
local next_due8 -- of the first job, if promote_due has found that no job is due

local function read_first_due()
  local first = redis.call('ZRANGE', scheduled_key, 0, 0)[1]
  return first and (read_scheduled(first)) or ''
end

local function promote_due(most)
  local first_due8 = read_first_due()
  if first_due8 == '' or decode_time(first_due8, 1) > now then
    next_due8 = first_due8
    return 0, {}
  end
  local members = redis.call('ZRANGEBYLEX', scheduled_key, '-', '(' .. encode_time(now + 1), 'LIMIT', 0, most)
  local ready, by_queue = {}, {}
  for _, member in ipairs(members) do
    local due8, field, lane4, rank, code, tenant = read_scheduled(member)
    local lane, ready_code = get_lane(lane4), code == RETRY_SCHEDULED and RETRYING or PENDING
    if tenant then
      add_turn(lane, rank, due8, field, tenant)
    else
      push_pair(ready, 0, lane4 .. rank .. due8 .. field)
    end
    lane[code], lane[ready_code] = lane[code] - 1, lane[ready_code] + 1
    by_queue[lane.queue] = (by_queue[lane.queue] or 0) + 1
  end
  redis.call('ZREM', scheduled_key, unpack(members))
  call_in_batches('ZADD', ready_key, ready)
  return #members, by_queue
end

local function get_next_due()
  return next_due8 or read_first_due()
end
