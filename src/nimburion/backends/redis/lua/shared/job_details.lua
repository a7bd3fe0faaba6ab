-- Part of get and list: all that is told of a job. Records are made of it in Python (inspecting.py).
-- Keys: payload history progress result sessions
-- Inputs: a field, its body, letter, and lease or state (see scan_jobs.lua)
-- Result: tell(...) -> {seq 8, letter, body as far as it is no payload, lease or state, payload, history, progress, result,
--   session id}, nil for what there is not, and how many bytes; names_of_lanes() -> [number, full name, ...]
-- The payload of a job that is not finished, or failed.
local function payload_of(field, body)
  if has(body, APART) then
    return redis.call('HGET', payload_key, field)
  end
  return tail_of(body)
end

local function tell(field, body, letter, past, payloads)
  local keeps, ends = letter ~= 'C' and letter ~= 'X', head_end(body)
  if has(body, FINISHED) then
    local _, behind = reason_of(body, ends + 1)
    ends = behind
  end
  local payload = payloads and keeps and payload_of(field, body)
  local history = redis.call('HGET', history_key, field)
  local result = letter == 'C' and redis.call('HGET', result_key, field)
  local session = letter == 'L' and redis.call('HGET', sessions_key, string.sub(past, 1, 4))
  local bytes = ends + #(payload or '') + #(history or '') + #(result or '')
  return {
    field, letter, string.sub(body, 1, ends), past or false, payload or false, history,
    redis.call('HGET', progress_key, field), result, session,
  }, bytes
end

local function names_of_lanes()
  local named = {}
  for number, lane in pairs(known_lanes) do
    push_two(named, number, lane.full)
  end
  return named
end
