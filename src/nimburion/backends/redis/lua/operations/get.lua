-- Get: all that is known of one job.
-- Keys: job_seq
-- Inputs: ARGV[3] id
-- Result: {} where there is none, or {names of lanes, what job_details.lua tells}
local field = find_field(ARGV[3])
if not field then
  return {}
end
local body, lease = redis.call('HGET', job_key, field), redis.call('HGET', lease_key, field)
local state = redis.call('HGET', attempt_state_key, field)
local code = get_state_code(body, lease, state)
get_lane(string.sub(body, 1, 4))
return { list_lane_names(), (describe_job(field, body, code, lease or state, true)) }
