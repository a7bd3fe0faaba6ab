-- Get: all that is known of one job.
-- Keys: id
-- Inputs: ARGV[3] id
-- Result: {} where there is none, or {names of lanes, what job_details.lua tells}
local field = field_of(ARGV[3])
if not field then
  return {}
end
local body, lease = redis.call('HGET', job_key, field), redis.call('HGET', lease_key, field)
local state = redis.call('HGET', state_key, field)
local letter = standing_of(body, lease, state)
lane_of(string.sub(body, 1, 4))
return { names_of_lanes(), (tell(field, body, letter, lease or state, true)) }
