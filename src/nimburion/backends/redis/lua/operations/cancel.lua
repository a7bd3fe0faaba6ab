-- Cancel one job.
-- Keys: job_seq job
-- Inputs: ARGV[3] id
-- Result: cancelled, requested (it runs: its worker is told with the next heartbeat), finished, or missing
local field = find_field(ARGV[3])
if not field then
  return 'missing'
end
local answer = cancel_job(field, redis.call('HGET', job_key, field))
write_buffer()
write_lane_counts()
notify_marked()
return answer
