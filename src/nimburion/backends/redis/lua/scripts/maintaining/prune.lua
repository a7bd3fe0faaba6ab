-- prune: deletes finished jobs and results past their retention, flows with their groups, and old sessions, expired unique keys and pauses
-- that ended.
-- Keys: job finished dead_letter_time result result_time unique_key unique_expiry
-- Keys: ended_session session_state session_info session_id session_leases paused_queue statistics_merged
-- Keys: replacement replacement_expiry counters limit_use parked tenant_share share_class
-- Keys: flow flow_order running_flow ended_flow released_flow flow_finished removed_run
-- Arguments:
--   ARGV[3] the maximum number of deletions
--   ARGV[4] the retention of completed and cancelled jobs in microseconds; '': for ever
--   ARGV[5] the retention of failed jobs, and ARGV[6] that of results, in the same form
--   ARGV[7] the maximum number of completed and cancelled jobs to keep; '': no maximum
--   ARGV[8] the retention of the ids of closed sessions
-- Reply: {number of deleted jobs and results, 1 if more may be left, now 8, {step, start of the last interval of
--   statistics whose sources are merged, ...}}
-- Atomic: one script per call. Each job is deleted completely or not at all.
-- Cost: O(log n) per deleted job, for n finished jobs; at most 500 sessions, 500 unique keys, 500 flows and groups and 500
--   members whose flow has ended.
local left = tonumber(ARGV[3])

local function find_older(key, kept, most)
  if kept == '' or most <= 0 then
    return {}
  end
  return redis.call('ZRANGEBYSCORE', key, '-inf', string.format('(%.0f', now - tonumber(kept)), 'LIMIT', 0, most)
end

local more = false

-- Return those of the jobs that are no members of a flow that runs. The others wait again for the end of their flow: it has run before.
local function drop_held(fields)
  if redis.call('EXISTS', running_flow_key) == 0 then
    return fields
  end
  local free = {}
  for i, body in ipairs(get_in_batches(job_key, fields)) do
    local member = body and is_member(body) and read_member(body)
    if member and member.flow and is_running(member.flow) then
      forget_ended(fields[i], member)
      keep_ended({ fields[i] }, member.flow)
      more = true
    else
      push(free, fields[i])
    end
  end
  write_kept()
  return free
end

local function delete_fields(fields)
  fields = drop_held(fields)
  left = left - #fields
  delete_jobs(fields, get_in_batches(job_key, fields))
end

-- Delete flows that ended longer ago than any of their members is kept, with their groups. Return how many.
local function drop_flows()
  local dropped, kept = 0, math.max(tonumber(ARGV[4]), tonumber(ARGV[5]))

  local function drop_flow(id)
    local first = pack_name(id)
    for _, member in ipairs(redis.call('ZRANGEBYLEX', flow_order_key, '[' .. first, '(' .. first .. '\255', 'LIMIT', 0, 500 - dropped)) do
      if dropped == 500 or not drop_flow(sub(member, #first + 9)) then
        return false
      end
    end
    if dropped == 500 then
      return false
    end
    local flow = find_flow(id)
    redis.call('HDEL', flow_key, id)
    redis.call('ZREM', flow_order_key, pack_name(flow.parent or '') .. flow.position8 .. id)
    dropped = dropped + 1
    return true
  end

  for _, id in ipairs(find_older(ended_flow_key, kept, 500)) do
    if not drop_flow(id) then
      break
    end
    redis.call('ZREM', ended_flow_key, id)
  end
  return dropped
end

-- Let members of flows that have ended be found by their own ends. Return how many were moved.
local function release_members()
  local moved = 0
  for _, id in ipairs(redis.call('ZRANGE', released_flow_key, 0, 99)) do
    local first = pack_name(id)
    local members = redis.call('ZRANGEBYLEX', flow_finished_key, '[' .. first, '(' .. first .. '\255', 'LIMIT', 0, 500 - moved)
    local fields = {}
    for i, member in ipairs(members) do
      fields[i] = sub(member, #first + 1)
    end
    for i, body in ipairs(get_in_batches(job_key, fields)) do
      local job_end = read_job_end(body)
      index_end(fields[i], job_end.code, decode_time(job_end.finished8, 1), job_end.reason)
    end
    call_in_batches('ZREM', flow_finished_key, members)
    moved = moved + #members
    if moved == 500 then
      break
    end
    redis.call('ZREM', released_flow_key, id)
  end
  return moved
end

-- Delete closed sessions past their retention that have no leases. Return how many.
local function drop_sessions()
  local dropped = 0
  for _, id in ipairs(find_older(ended_session_key, ARGV[8], 500)) do
    local session4 = read_session_state(redis.call('HGET', session_state_key, id)).session4
    if #redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4), 'LIMIT', 0, 1) == 0 then
      redis.call('HDEL', session_state_key, id)
      redis.call('HDEL', session_info_key, id)
      redis.call('HDEL', session_id_key, session4)
      redis.call('ZREM', ended_session_key, id)
      dropped = dropped + 1
    end
  end
  return dropped
end

-- Delete expired unique keys. Return how many.
local function drop_keys()
  local fields = redis.call('ZRANGEBYSCORE', unique_expiry_key, '-inf', now, 'LIMIT', 0, 500)
  call_in_batches('HDEL', unique_key_key, fields)
  call_in_batches('ZREM', unique_expiry_key, fields)
  return #fields
end

-- Delete the replacements whose repeats are no longer recognised. Return how many.
local function drop_replacements()
  local ids = redis.call('ZRANGEBYSCORE', replacement_expiry_key, '-inf', now, 'LIMIT', 0, 500)
  call_in_batches('HDEL', replacement_key, ids)
  call_in_batches('ZREM', replacement_expiry_key, ids)
  return #ids
end

-- Delete steps and signals of durable runs that were deleted before. Return whether some are left.
local function drop_runs()
  remove_runs(redis.call('ZRANGE', removed_run_key, 0, 499))
  return redis.call('EXISTS', removed_run_key) == 1
end

-- Delete the pauses that ended.
local function drop_pauses()
  local pauses = read_pauses()
  for _, queue in ipairs(redis.call('HKEYS', paused_queue_key)) do
    if not pauses[queue] then
      redis.call('HDEL', paused_queue_key, queue)
    end
  end
end

-- Delete keys of limits whose rates are not in use any more, some in each call. Others are deleted when nothing counts for them.
local function drop_limit_keys()
  local cursor = redis.call('HGET', counters_key, 'limit_use_cursor') or '0'
  local found = redis.call('HSCAN', limit_use_key, cursor, 'COUNT', 500)
  for i = 1, #found[2], 2 do
    local name, in_use, spent, opens = found[2][i], string.match(found[2][i + 1], '^(%S+) (%S+) (%S+)$')
    if in_use == '0' and opens == '-' and tonumber(spent) < now
      and #redis.call('ZRANGEBYLEX', parked_key, '[' .. name .. '\0', '(' .. name .. '\1', 'LIMIT', 0, 1) == 0 then
      redis.call('HDEL', limit_use_key, name)
    end
  end
  if cursor ~= found[1] then
    redis.call('HSET', counters_key, 'limit_use_cursor', found[1])
  end
end
-- Forget tenants without jobs that are not ahead of their class, or whose class has no jobs at all; some in each call. A class is
-- forgotten with its last tenant.
local function drop_shares()
  local cursor = redis.call('HGET', counters_key, 'tenant_cursor') or '0'
  local found = redis.call('HSCAN', tenant_share_key, cursor, 'COUNT', 500)
  for i = 1, #found[2], 2 do
    local field = found[2][i]
    local queue = string.match(field, '^%Z*')
    local class = get_class(queue, sub(field, #queue + 2, #queue + 2))
    local share = read_share(class, sub(field, #queue + 3), found[2][i + 1])
    if not share[SHARE_WAS_BUSY] and (class.busy == 0 or share[SHARE_TIME] <= class.min_virtual_time) then
      redis.call('HDEL', tenant_share_key, field)
      class.shares, class.is_changed = class.shares - 1, true
    end
  end
  for field, class in pairs(turns.classes) do
    if class.shares == 0 then
      redis.call('HDEL', share_class_key, field)
    elseif class.is_changed then
      redis.call('HSET', share_class_key, field, pack_struct('>I8I4I4', class.min_virtual_time, class.busy, class.shares))
    end
  end
  if cursor ~= found[1] then
    redis.call('HSET', counters_key, 'tenant_cursor', found[1])
  end
end


drop_pauses()
if redis.call('HLEN', tenant_share_key) > 0 then
  drop_shares()
end
if redis.call('HLEN', limit_use_key) > 0 then
  drop_limit_keys()
end
more = drop_sessions() == 500
more = drop_keys() == 500 or more
more = drop_replacements() == 500 or more
if redis.call('EXISTS', removed_run_key) == 1 then
  more = drop_runs() or more
end
if ARGV[4] ~= '' and ARGV[5] ~= '' and redis.call('EXISTS', ended_flow_key) == 1 then
  more = drop_flows() == 500 or more
end
if redis.call('EXISTS', released_flow_key) == 1 then
  more = release_members() == 500 or redis.call('EXISTS', released_flow_key) == 1 or more
end
delete_fields(find_older(finished_key, ARGV[4], left))
delete_fields(find_older(dead_letter_time_key, ARGV[5], left))
if ARGV[7] ~= '' then
  local excess = math.min(left, redis.call('ZCARD', finished_key) - tonumber(ARGV[7]))
  if excess > 0 then
    delete_fields(redis.call('ZRANGE', finished_key, 0, excess - 1))
  end
end
local results = drop_held(find_older(result_time_key, ARGV[6], left))
call_in_batches('HDEL', result_key, results)
call_in_batches('ZREM', result_time_key, results)
write_lane_counts()
return { tonumber(ARGV[3]) - left + #results, more and 1 or 0, now8, redis.call('HGETALL', statistics_merged_key) }
