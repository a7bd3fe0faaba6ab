-- Shared part of list_jobs and list_dead_letters: scans jobs and visits those that match a filter.
-- Keys: counters job attempt_state lease dead_letter pruned_blocks
-- Arguments: ARGV[3] source: all (by seq, newest first), dead (failed jobs, by seq, newest first), given (the fields in
--   ARGV[7], 8 bytes each)
--   ARGV[4] field after which the scan begins, or ''
--   ARGV[5] filter (MessagePack): {codes, queue, job name, reason, search}; false: any. A search is {created from, created before,
--   finished from, finished before (in microseconds), fingerprint, least failures, tenant, correlation id, tag, flow}; false: any
--   ARGV[6] maximum number of jobs
-- Provides: scan_jobs(visit, budget) -> field to continue after, true if the source has no more jobs, number of jobs checked, number
--   of seqs passed (with the deleted jobs), true if the scan stopped because it has checked `budget` jobs and there is another
--   It calls visit(field, body, code, attempts, job_end) for each match; `attempts` is the lease or the attempt state, or nil;
--   `job_end` is a result of read_job_end, or nil. visit returns whether the scan stops, and whether it continues before this job,
--   because the job is not taken.
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

local function matches_lane(body, queue, name)
  local lane = get_lane(get_lane_number(body))
  return not (queue and lane.queue ~= queue) and not (name and lane.name ~= name)
end

-- Return the options of a job that has this one; nil otherwise. `key` is the name of the option.
local function find_option(body, key)
  if not has_flag(body, FLAG_OPTIONS) then
    return nil
  end
  local offset = JOB_ID + byte(body, JOB_ID_LENGTH)
  local json = sub(body, offset + 4, offset + 3 + (unpack_struct('>I4', body, offset)))
  return string.find(json, '"' .. key .. '"', 1, true) and cjson.decode(json)[key]
end

local function has_value(list, wanted)
  for _, value in ipairs(list or {}) do
    if value == wanted then
      return true
    end
  end
  return false
end

local function is_in_range(time8, first, before)
  local time = decode_time(time8, 1)
  return not (first and time < first) and not (before and time >= before)
end

-- Return whether a job matches the fields that have no index.
local function matches_search(search, body, attempts, job_end)
  local created_from, created_before, finished_from, finished_before, fingerprint, failures, tenant, correlation_id, tag, flow = unpack(search)
  if not is_in_range(sub(body, JOB_LANE_END + 1, JOB_CREATED_END), created_from, created_before) then
    return false
  end
  if (finished_from or finished_before) and not (job_end and is_in_range(job_end.finished8, finished_from, finished_before)) then
    return false
  end
  if fingerprint and not (job_end and job_end.fingerprint == fingerprint) then
    return false
  end
  if failures then
    local counts = job_end and job_end.counts or attempts and attempts.counts or NO_COUNTS
    if unpack_struct('>I4', counts) < failures then
      return false
    end
  end
  return not (tenant and find_option(body, 'tenant') ~= tenant)
    and not (correlation_id and find_option(body, 'correlation_id') ~= correlation_id)
    and not (flow and (find_option(body, 'flow') ~= flow or find_option(body, 'group') == ''))
    and not (tag and not has_value(find_option(body, 'tags'), tag))
end

local function scan_jobs(visit, budget)
  local filter, next_fields = cmsgpack.unpack(ARGV[5]), SOURCES[ARGV[3]]
  local codes, queue, name, wanted_reason, search = unpack(filter)
  local after, last, checked, passed = ARGV[4], false, 0, 0
  for _ = 1, 8 do
    local fields
    fields, last = next_fields(after)
    local bodies, leases, states = get_in_batches(job_key, fields), get_in_batches(lease_key, fields), get_in_batches(attempt_state_key, fields)
    for i, field in ipairs(fields) do
      local body, enough, leaves = bodies[i], false, false
      if body then
        if checked == budget then
          return after, false, checked, passed, true
        end
        checked = checked + 1
        if matches_lane(body, queue, name) then
          local lease, state = leases[i], states[i]
          local code, job_end = get_state_code(body, lease, state)
          if not (codes and not string.find(codes, code, 1, true))
            and not (wanted_reason and not (job_end and job_end.reason == wanted_reason))
            and not (search and not matches_search(search, body, lease and read_lease(lease) or state and read_attempt_state(state), job_end))
          then
            enough, leaves = visit(field, body, code, lease or state, job_end)
          end
        end
      end
      passed = passed + 1
      if not leaves then
        after = field
      end
      if enough then
        return after, last and i == #fields, checked, passed, false
      end
    end
    if last or checked >= BLOCK / 2 then
      break
    end
  end
  return after, last, checked, passed, false
end
