-- Shared part of list, replay and delete: scans jobs and visits those that match a filter.
-- Keys: counters job attempt_state lease dead_letter finished pruned_blocks
-- Arguments: ARGV[3] source: all (by seq, newest first), dead (failed jobs, by seq, newest first), done (completed and cancelled
--   jobs, by end, latest first), given (the fields in ARGV[7], 8 bytes each)
--   ARGV[4] field after which the scan begins, or ''
--   ARGV[5] filter (MessagePack): {codes, queue, job name, reason}; false: any
--   ARGV[6] maximum number of jobs
-- Provides: scan_jobs(visit) -> field to continue after, true if the source has no more jobs. It calls visit(field, body, code,
--   attempts) for each match; `attempts` is the lease or the attempt state, or nil. visit returns whether the scan stops, and
--   whether the job leaves the source.
-- Cost: about 500 jobs per script; the backend then runs the script again. Empty blocks of seqs (see record_format.lua) are
--   skipped.
--
-- list_fields_below returns the seqs below `top`, newest first, as far as the first seq of their block.
local FIRST_FIELD = '\0\0\0\0\0\0\0\1'

local function list_fields_below(top)
  local block = math.floor((top - 2) / BLOCK)
  local first = redis.call('HGET', pruned_blocks_key, '<' .. block)
  if first then
    top = first * BLOCK + 1
    block = first - 1
  end
  local fields = {}
  for number = top - 1, math.max(0, block * BLOCK) + 1, -1 do
    push(fields, struct.pack('>I8', number))
  end
  return fields
end

-- Per source: return the next fields after the field `after`, and whether they are the last.
local SOURCES = {
  all = function(after)
    local top = tonumber(redis.call('HGET', counters_key, 'seq') or 0) + 1
    if after ~= '' then
      top = math.min(top, (struct.unpack('>I8', after)))
    end
    local fields = list_fields_below(top)
    return fields, #fields == 0 or fields[#fields] == FIRST_FIELD
  end,
  dead = function(after)
    local top = after == '' and '+inf' or string.format('(%.0f', (struct.unpack('>I8', after)))
    local fields = redis.call('ZREVRANGEBYSCORE', dead_letter_key, top, '-inf', 'LIMIT', 0, BLOCK)
    return fields, #fields < BLOCK
  end,
  done = function(after)
    local rank = after ~= '' and redis.call('ZREVRANK', finished_key, after)
    local first = rank and rank + 1 or 0
    local fields = redis.call('ZREVRANGE', finished_key, first, first + BLOCK - 1)
    return fields, #fields < BLOCK
  end,
  given = function(after)
    local top, fields = after == '' and math.huge or (struct.unpack('>I8', after)), {}
    for at = 1, #ARGV[7], 8 do
      if (struct.unpack('>I8', ARGV[7], at)) < top then
        push(fields, string.sub(ARGV[7], at, at + 7))
      end
    end
    return fields, true
  end,
}

-- Return the code of a job and, if it is finished, its reason. `lease` and `state` are those of an unfinished job that was leased.
local function get_state_code(body, lease, state)
  if has_flag(body, FLAG_FINISHED) then
    local job_end = read_job_end(body)
    return job_end.code, job_end.reason
  end
  if lease then
    return LEASED
  end
  local attempts = state and read_attempt_state(state)
  if attempts and has_failures(attempts.counts) then
    return RETRYING
  end
  local due8 = attempts and attempts.due8 or get_due(body)
  return decode_time(due8, 1) > now and SCHEDULED or PENDING
end

local function matches_lane(body, queue, name)
  local lane = get_lane(get_lane_number(body))
  return not (queue and lane.queue ~= queue) and not (name and lane.name ~= name)
end

local function scan_jobs(visit)
  local filter, next_fields = cmsgpack.unpack(ARGV[5]), SOURCES[ARGV[3]]
  local codes, queue, name, wanted_reason = filter[1], filter[2], filter[3], filter[4]
  local after, last, looked = ARGV[4], false, 0
  for _ = 1, 8 do
    local fields
    fields, last = next_fields(after)
    local bodies, leases, states = get_in_batches(job_key, fields), get_in_batches(lease_key, fields), get_in_batches(attempt_state_key, fields)
    for i, field in ipairs(fields) do
      local body, enough, leaves = bodies[i], false, false
      if body then
        looked = looked + 1
        if matches_lane(body, queue, name) then
          local code, reason = get_state_code(body, leases[i], states[i])
          if not (codes and not string.find(codes, code, 1, true)) and not (wanted_reason and reason ~= wanted_reason) then
            enough, leaves = visit(field, body, code, leases[i] or states[i])
          end
        end
      end
      if not leaves then
        after = field
      end
      if enough then
        return after, last and i == #fields
      end
    end
    if last or looked >= BLOCK / 2 then
      break
    end
  end
  return after, last
end
