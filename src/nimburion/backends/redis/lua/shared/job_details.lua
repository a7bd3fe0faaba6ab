-- Shared part of get and list: collects the details of one job. queries.py makes a record of them.
-- Keys: payload history progress result
-- Provides: describe_job(field, body, code, attempts, job_end, payload_bytes) -> details, size in bytes. `attempts` is the lease or the
--   attempt state of the job, or nil, `job_end` a result of read_job_end or nil (see scan_jobs.lua). The details are {seq 8, code,
--   body without payload, lease or attempt state, payload, history, progress, result, session that runs or ended it (see session_names.lua)}, with false for what does not exist.
--   list_lane_names() -> {lane number, full name, ...}
-- Cost: O(1) per job and byte.
--
-- get_payload returns the payload of a job that has one: it is unfinished, failed, or completed and keeps it.
local function get_payload(field, body)
  if has_flag(body, FLAG_LARGE_PAYLOAD) then
    return redis.call('HGET', payload_key, field)
  end
  return get_payload_part(body)
end

local WHOLE_PAYLOAD = 1073741824

local function describe_job(field, body, code, attempts, job_end, payload_bytes)
  local has_payload = not job_end or code == FAILED or has_flag(body, FLAG_PAYLOAD_KEPT)
  local size = job_end and job_end.rest - 1 or find_head_end(body)
  local payload = payload_bytes > 0 and has_payload and get_payload(field, body)
  payload = payload and string.sub(payload, 1, payload_bytes)
  local history = redis.call('HGET', history_key, field)
  local result = code == COMPLETED and redis.call('HGET', result_key, field)
  local session4 = code == LEASED and read_lease(attempts).session4 or job_end and job_end.session4 or NO_SESSION
  local session = session4 ~= NO_SESSION and find_session(session4)
  local bytes = size + #(payload or '') + #(history or '') + #(result or '')
  return {
    field, code, string.sub(body, 1, size), attempts or false, payload or false, history,
    redis.call('HGET', progress_key, field), result, session,
  }, bytes
end

local function list_lane_names()
  local named = {}
  for number, lane in pairs(known_lanes) do
    push_pair(named, number, lane.full)
  end
  return named
end
