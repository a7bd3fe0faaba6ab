-- Cancel one job.
-- Keys: id job
-- Inputs: ARGV[3] id
-- Result: cancelled, requested (it runs: its worker is told with the next heartbeat), finished, or missing
local field = field_of(ARGV[3])
if not field then
  return 'missing'
end
local answer = cancel(field, redis.call('HGET', job_key, field))
write_ledger()
count_lanes()
ring()
return answer
