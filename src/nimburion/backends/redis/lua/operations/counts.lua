-- counts: counts the jobs in each state.
-- Keys: lane_name
-- Arguments: ARGV[3] queue; absent: all queues
-- Reply: {pending, scheduled, retrying, processing, completed, failed, cancelled}, or {}: promote and call again
-- Atomic: reads only; all counts are of the same moment.
-- Cost: O(lanes).
local lanes = count_jobs()
if not lanes then
  return {}
end
local sums = { P = 0, S = 0, R = 0, T = 0, L = 0, C = 0, F = 0, X = 0 }
for number, counted in pairs(lanes) do
  if not ARGV[3] or get_lane(number).queue == ARGV[3] then
    for code, count in pairs(counted) do
      sums[code] = sums[code] + count
    end
  end
end
return { sums.P, sums.S, sums.R + sums.T, sums.L, sums.C, sums.F, sums.X }
