-- promote: makes due jobs available to workers.
-- Keys: scheduled ready lane_name flow_change
-- Arguments: ARGV[3] maximum number of jobs
-- Reply: {number of jobs moved, next due time 8 or '', 1 if continue_flows has work to do}
-- Atomic: one script. Each job is in exactly one of `scheduled`, `ready` and `tenant_job`.
-- Cost: O(log n) per job, for n waiting jobs.
local count, by_queue = promote_due(tonumber(ARGV[3]))
for queue, jobs in pairs(by_queue) do
  mark_queue(queue, jobs)
end
write_turns()
write_lane_counts()
notify_marked()
return { count, get_next_due(), redis.call('EXISTS', flow_change_key) }
