-- Shared part of counts and queues: counts the jobs of each lane by code.
-- Keys: lane_counts scheduled
-- Provides: count_by_lane() -> {lane number: {code: count}}, and the members of `scheduled` that are due, without those of suspended runs. It returns nil if more
--   than 500 jobs are due: the backend then promotes them and runs the script again.
-- A due job counts as ready even if it is not promoted yet.
-- Cost: O(lanes), and O(1) per due job.
local function count_by_lane()
  local due_members = redis.call('ZRANGEBYLEX', scheduled_key, '-', '(' .. encode_time(now + 1), 'LIMIT', 0, 501)
  if #due_members > 500 then
    return nil
  end
  local lanes, due_jobs, flat = {}, {}, redis.call('HGETALL', lane_counts_key)
  for i = 1, #flat, 2 do
    local number, code = string.sub(flat[i], 1, 4), string.sub(flat[i], 5)
    lanes[number] = lanes[number] or make_zero_counts()
    lanes[number][code] = tonumber(flat[i + 1])
  end
  for _, member in ipairs(due_members) do
    local _, _, lane4, _, code = read_scheduled(member)
    if code ~= SUSPENDED then
      local lane, ready = lanes[lane4], code == RETRY_SCHEDULED and RETRYING or PENDING
      lane[code], lane[ready] = lane[code] - 1, lane[ready] + 1
      push(due_jobs, member)
    end
  end
  return lanes, due_jobs
end
