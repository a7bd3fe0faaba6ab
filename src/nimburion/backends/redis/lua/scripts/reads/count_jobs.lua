-- count_jobs: counts the jobs in each state.
-- Keys: lane_name
-- Arguments: ARGV[3] queue; absent: all queues
-- Reply: {pending, scheduled, retrying, processing, suspended, completed, failed, cancelled}, or {}: promote and call again
-- Atomic: reads only; all counts are of the same moment.
-- Cost: O(lanes).
local queue, lanes = ARGV[3], count_by_lane()
if not lanes then
  return {}
end
local sums = make_zero_counts()
for number, counted in pairs(lanes) do
  if not queue or get_lane(number).queue == queue then
    for code, count in pairs(counted) do
      sums[code] = sums[code] + count
    end
  end
end
return {
  sums[PENDING], sums[SCHEDULED], sums[RETRYING] + sums[RETRY_SCHEDULED], sums[LEASED],
  sums[SUSPENDED], sums[COMPLETED], sums[FAILED], sums[CANCELLED],
}
