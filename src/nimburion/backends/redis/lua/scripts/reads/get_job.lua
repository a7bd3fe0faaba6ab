-- get_job: returns the details of one job.
-- Keys: job_seq
-- Arguments: ARGV[3] id
-- Reply: {} if there is no such job, else {{lane number, full name, ...}, details (see job_details.lua)}
-- Atomic: reads only; all details are of the same moment.
-- Cost: O(1).
local field = find_field(ARGV[3])
if not field then
  return {}
end
local body, lease = redis.call('HGET', job_key, field), redis.call('HGET', lease_key, field)
local state = redis.call('HGET', attempt_state_key, field)
local code, job_end = get_state_code(body, lease, state)
get_lane(get_lane_number(body))
return { list_lane_names(), (describe_job(field, body, code, lease or state, job_end, WHOLE_PAYLOAD)) }
