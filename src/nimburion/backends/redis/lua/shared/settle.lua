-- Shared part of exchange: settles attempts.
-- Keys: job attempt_state lease history progress result result_time
-- Provides: settle_all(session4, records, next_extra) -> one code per settlement: d done, a already, s stale
--   records: 29 bytes per settlement, in order: kind 1 | seq 8 | token 20
--   ARGV[next_extra...]: the other values of each settlement, in the same order
--   Kinds: c completed, C completed with a result (result), r retried (delay 8, error), f failed (reason, error), l released,
--     s released with a delay (delay 8), x cancelled (reason), p progressed (fraction and message)
-- Atomic: all settlements are decided before anything is written.
-- Cost: O(log n) per settlement, for n waiting jobs.
--
-- find_settled_token returns the token that settled the job last; '' if there is none.
local function find_settled_token(field, lease, body)
  if lease then
    return string.sub(lease, 71, 90)
  end
  local state = redis.call('HGET', attempt_state_key, field)
  if state then
    return string.sub(state, 27, 46)
  end
  if body and has_flag(body, FLAG_FINISHED) then
    local at = find_head_end(body) + 1
    return string.sub(body, at + 27, at + 46)
  end
  return ''
end

local function add_failure(lease)
  return struct.pack('>I4', (struct.unpack('>I4', lease, 42)) + 1) .. string.sub(lease, 46, 47)
end

local function settle_all(session4, records, next_extra)
  local total = #records / 29
  if total == 0 then
    return ''
  end
  local fields, codes, ended, histories, progressed, results = {}, {}, {}, {}, {}, {}
  for i = 1, total do
    fields[i] = string.sub(records, i * 29 - 27, i * 29 - 20)
  end
  local leases = get_in_batches(lease_key, fields)
  local bodies = get_in_batches(job_key, fields)

  local function extra()
    next_extra = next_extra + 1
    return ARGV[next_extra - 1]
  end

  local function note(field, json)
    histories[field] = (histories[field] or redis.call('HGET', history_key, field) or '')
      .. now8 .. struct.pack('>I4', #json) .. json
  end

  local function requeue_or_cancel(field, lease, body, lane, counts, delay, token)
    end_lease(field, lease, lane)
    if string.byte(lease, 41) == 49 then
      finish_job(field, body, lane, 'X', make_end_record(lease, counts, token))
    else
      requeue(field, lease, lane, counts, delay and encode_time(now + delay), token)
    end
  end

  for i = 1, total do
    local at = i * 29 - 28
    local kind, field, token = string.byte(records, at), fields[i], string.sub(records, at + 9, at + 28)
    local lease, body = leases[i], bodies[i]
    local held = lease and not ended[field] and string.sub(lease, 1, 24) == session4 .. token
    local first, second
    if kind ~= 99 and kind ~= 108 then -- c, l
      first = extra()
      if kind == 114 or kind == 102 then -- r, f
        second = extra()
      end
    end
    if not held then
      local settled = ended[field] or find_settled_token(field, lease, body)
      codes[i] = settled == token and 'a' or 's'
    else
      codes[i] = 'd'
      local lane = get_lane(string.sub(lease, 50, 53))
      if kind == 112 then -- p
        push_pair(progressed, field, first)
      else
        ended[field] = token
        local counts = string.sub(lease, 42, 47)
        if kind == 99 or kind == 67 then -- c, C
          end_lease(field, lease, lane)
          finish_job(field, body, lane, 'C', make_end_record(lease, counts, token))
          if first then
            push_pair(results, field, first)
          end
        elseif kind == 114 then
          note(field, second)
          requeue_or_cancel(field, lease, body, lane, add_failure(lease), decode_time(first, 1), token)
        elseif kind == 102 then
          note(field, second)
          end_lease(field, lease, lane)
          finish_job(field, body, lane, 'F', make_end_record(lease, add_failure(lease), token), first)
        elseif kind == 120 then
          end_lease(field, lease, lane)
          finish_job(field, body, lane, 'X', make_end_record(lease, counts, token), first)
        else -- l, s
          requeue_or_cancel(field, lease, body, lane, counts, first and decode_time(first, 1), token)
        end
      end
    end
  end

  write_buffer()
  call_in_batches('HSET', progress_key, progressed)
  call_in_batches('HSET', result_key, results)
  for i = 1, #results, 2 do
    redis.call('ZADD', result_time_key, now, results[i])
  end
  for field, entries in pairs(histories) do
    redis.call('HSET', history_key, field, entries)
  end
  return table.concat(codes)
end
