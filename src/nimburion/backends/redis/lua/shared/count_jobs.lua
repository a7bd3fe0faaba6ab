-- Part of counts and queues: how many jobs of each lane stand where.
-- Keys: lane_counts scheduled
-- Result: count_jobs() -> {[lane number] = {[code] = how many}}, and the jobs set aside that are due; nil when these are more than
--   500: then the backend promotes first
-- Atomic: part of its script. A job that is due counts as ready, also before somebody promotes it.
local function count_jobs()
  local due_members = redis.call('ZRANGEBYLEX', scheduled_key, '-', '(' .. encode_time(now + 1), 'LIMIT', 0, 501)
  if #due_members > 500 then
    return nil
  end
  local lanes, flat = {}, redis.call('HGETALL', lane_counts_key)
  for i = 1, #flat, 2 do
    local number, code = string.sub(flat[i], 1, 4), string.sub(flat[i], 5)
    lanes[number] = lanes[number] or { P = 0, S = 0, R = 0, T = 0, L = 0, C = 0, F = 0, X = 0 }
    lanes[number][code] = tonumber(flat[i + 1])
  end
  for _, member in ipairs(due_members) do
    local lane, code = lanes[string.sub(member, 17, 20)], string.sub(member, 22)
    local ready = code == 'T' and 'R' or 'P'
    lane[code], lane[ready] = lane[code] - 1, lane[ready] + 1
  end
  return lanes, due_members
end
