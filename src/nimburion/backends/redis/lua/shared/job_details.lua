-- Part of get and list: all that is told of a job. Records are made of it in Python (queries.py).
-- Keys: payload history progress result session_id
-- Inputs: a field, its body, code, and lease or state (see scan_jobs.lua)
-- Result: describe_job(...) -> {seq 8, code, body as far as it is no payload, lease or state, payload, history, progress, result,
--   session id}, nil for what there is not, and how many bytes; list_lane_names() -> [number, full name, ...]
-- The payload of a job that is not finished, or failed.
local function get_payload(field, body)
  if has_flag(body, FLAG_LARGE_PAYLOAD) then
    return redis.call('HGET', payload_key, field)
  end
  return get_tail(body)
end

local function describe_job(field, body, code, attempts, payloads)
  local keeps, ends = code ~= 'C' and code ~= 'X', find_head_end(body)
  if has_flag(body, FLAG_FINISHED) then
    local _, behind = get_reason(body, ends + 1)
    ends = behind
  end
  local payload = payloads and keeps and get_payload(field, body)
  local history = redis.call('HGET', history_key, field)
  local result = code == 'C' and redis.call('HGET', result_key, field)
  local session = code == 'L' and redis.call('HGET', session_id_key, string.sub(attempts, 1, 4))
  local bytes = ends + #(payload or '') + #(history or '') + #(result or '')
  return {
    field, code, string.sub(body, 1, ends), attempts or false, payload or false, history,
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
