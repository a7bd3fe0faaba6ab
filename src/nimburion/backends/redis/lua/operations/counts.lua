-- Counts: how many jobs are kept in each state.
-- Keys: lanes
-- Inputs: ARGV[3] the queue, where only one is meant
-- Result: {how many are pending, scheduled, retrying, processing, completed, failed, cancelled}, or {} to be asked again after
--   promoting
local lanes = tally()
if not lanes then
  return {}
end
local sums = { P = 0, S = 0, R = 0, T = 0, L = 0, C = 0, F = 0, X = 0 }
for number, counted in pairs(lanes) do
  if not ARGV[3] or lane_of(number).queue == ARGV[3] then
    for letter, count in pairs(counted) do
      sums[letter] = sums[letter] + count
    end
  end
end
return { sums.P, sums.S, sums.R + sums.T, sums.L, sums.C, sums.F, sums.X }
