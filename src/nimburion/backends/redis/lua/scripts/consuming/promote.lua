-- promote: makes due jobs available to workers, resumes durable runs whose time has come, and applies what earlier scripts have left of the
-- changes of members of flows.
-- Keys: scheduled ready lane_name
-- Arguments: ARGV[3] maximum number of jobs
-- Reply: {number of jobs moved, next due time 8 or '', 1 if more may be due}
-- Atomic: one script. Each job is in exactly one of `scheduled`, `ready` and `tenant_job`.
-- Cost: O(log n) per job, for n waiting jobs.
continue_flows(false, true)
local count, by_queue, has_more = promote_due(tonumber(ARGV[3]))
for queue, jobs in pairs(by_queue) do
  mark_queue(queue, jobs)
end
write_turns()
write_lane_counts()
notify_marked()
return { count, get_next_due(), has_more and 1 or 0 }
