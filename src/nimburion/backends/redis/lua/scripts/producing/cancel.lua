-- cancel: cancels one job.
-- Keys: job_seq job
-- Arguments: ARGV[3] id
-- Reply: 'cancelled', 'requested' (the job runs; its session is notified), 'finished' or 'missing'
-- Atomic: one script. A settlement of the job comes before or after it.
-- Cost: O(log n) for n waiting jobs.
local field = find_field(ARGV[3])
if not field then
  return 'missing'
end
local answer = cancel_job(field, redis.call('HGET', job_key, field))
write_buffer()
resolve_flows()
write_lane_counts()
notify_marked()
return answer
