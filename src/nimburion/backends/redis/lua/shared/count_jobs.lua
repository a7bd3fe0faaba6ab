-- Part of counts and queues: how many jobs of each lane stand where.
-- Keys: count due
-- Result: tally() -> {[lane number] = {[letter] = how many}}, and the jobs set aside that are due; nil when these are more than
--   500: then the backend promotes first
-- Atomic: part of its script. A job that is due counts as ready, also before somebody promotes it.
local function tally()
  local overdue = redis.call('ZRANGEBYLEX', due_key, '-', '(' .. time8(now + 1), 'LIMIT', 0, 501)
  if #overdue > 500 then
    return nil
  end
  local lanes, flat = {}, redis.call('HGETALL', count_key)
  for i = 1, #flat, 2 do
    local number, letter = string.sub(flat[i], 1, 4), string.sub(flat[i], 5)
    lanes[number] = lanes[number] or { P = 0, S = 0, R = 0, T = 0, L = 0, C = 0, F = 0, X = 0 }
    lanes[number][letter] = tonumber(flat[i + 1])
  end
  for _, member in ipairs(overdue) do
    local lane, letter = lanes[string.sub(member, 17, 20)], string.sub(member, 22)
    local ready = letter == 'T' and 'R' or 'P'
    lane[letter], lane[ready] = lane[letter] - 1, lane[ready] + 1
  end
  return lanes, overdue
end
