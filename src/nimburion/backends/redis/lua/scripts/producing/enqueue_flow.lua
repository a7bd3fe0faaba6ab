-- enqueue_flow: stores a batch of up to 500 jobs as enqueue.lua does, and flows. Jobs with conditions are suspended.
-- Keys: counters job job_seq flow flow_order running_flow ended_flow open_flow condition unmet
-- Arguments:
--   ARGV[3] five numbers of 4 bytes: of the new flows, of the stored flows that get members, of the jobs and of the flows that the
--     call names and does not store, and of the flows to which its sources belong
--   ARGV[4...] id, identity (the end of a record of `flow`) and '1' if it is open, of each new flow; id and '1' if it is closed, of each
--     flow that gets members; ids of these jobs, ids of these flows, ids of those
--   then positions, number of lanes, full lane names, bodies and large payloads (see enqueue_jobs.lua)
-- Reply: {codes, {index, id of the job that holds the unique key, ...}}, {'unknown', ids of jobs, ids of flows}, {'other', id of a flow, its
--   record}: another flow with this id is kept, or one with other groups, or {'ended', the same}: it has ended and gets no members. After the last three,
--   nothing was stored.
-- Atomic: one script. A full server rejects it before it begins.
-- Cost: O(log n) per job and condition, for n waiting jobs and conditions.
local new_count, grown_count, job_count, flow_count, root_count = unpack_struct('>I4I4I4I4I4', ARGV[3])
local next_value = 4

local function take_values(count)
  local values = {}
  for i = 1, count do
    values[i] = ARGV[next_value]
    next_value = next_value + 1
  end
  return values
end

local new_flows, grown_flows = take_values(3 * new_count), take_values(2 * grown_count)
local named_jobs, named_flows = take_values(job_count), take_values(flow_count)
local roots = take_values(root_count)
local positions, lane_count = unpack(take_values(2))
local names = take_values(tonumber(lane_count))

-- Return those of the ids of flows that are unknown.
local function find_unknown_flows(ids)
  local unknown = {}
  for i, record in ipairs(get_in_batches(flow_key, ids)) do
    if not record then
      push(unknown, ids[i])
    end
  end
  return unknown
end

-- Return those of the ids of jobs that are unknown, or belong to none of the flows.
local function find_unknown_jobs(ids)
  local is_root, unknown = {}, {}
  for _, id in ipairs(roots) do
    is_root[id] = true
  end
  for i, low in ipairs(get_in_batches(job_seq_key, ids)) do
    local body = low and redis.call('HGET', job_key, '\0\0' .. low)
    if not (body and is_member(body) and is_root[read_member(body).flow]) then
      push(unknown, ids[i])
    end
  end
  return unknown
end

-- Store the flows that are new.
local function add_flows()
  local added = {}
  for i = 1, #new_flows, 3 do
    local id, identity, is_open = new_flows[i], new_flows[i + 1], new_flows[i + 2] == '1'
    if redis.call('HEXISTS', flow_key, id) == 0 then
      local members, position8 = unpack_struct('>I4', identity), pack_struct('>I8', redis.call('HINCRBY', counters_key, 'flow', 1))
      local more = is_open and 1 or 0
      members = members + more
      redis.call('HSET', flow_key, id, pack_flow_counts({ unfinished = members, completed = 0, failed = 0, cancelled = 0, added = more })
        .. now8 .. (members == 0 and now8 or NO_TIME) .. (is_open and now8 or NO_TIME) .. position8 .. identity)
      if is_open then
        redis.call('ZADD', open_flow_key, now, id)
      end
      local flow = find_flow(id)
      redis.call('ZADD', flow_order_key, 0, pack_name(flow.parent or '') .. position8 .. id)
      if not flow.parent and members > 0 then
        redis.call('ZADD', running_flow_key, 0, position8 .. id)
      elseif not flow.parent then
        redis.call('ZADD', ended_flow_key, now, id)
      end
      push(added, id)
    end
  end
  for _, id in ipairs(added) do
    note_new_flow(read_flow(id))
    added[id] = true
  end
  return added
end

local function get_member(new_body)
  local body = NO_FRONT .. new_body
  return is_member(body) and read_member(body) or nil
end

-- Return the id of a job of this call, by its index.
local function get_new_id(i)
  return get_id(NO_FRONT .. ARGV[next_value + i - 1])
end

local function is_same_flow(field, new_body)
  local stored, new = redis.call('HGET', job_key, field), get_member(new_body)
  return (is_member(stored) and read_member(stored).flow or nil) == (new and new.flow)
end

-- Return the indexes of the jobs whose flow has ended. They were stored before, and may have been pruned since.
local function find_past_jobs()
  local past, has_ended = {}, {}
  for i = 1, #positions / POSITION_SIZE do
    local body = NO_FRONT .. ARGV[next_value + i - 1]
    local id = is_member(body) and read_member(body).flow
    if id and has_ended[id] == nil then
      local flow = find_flow(id)
      has_ended[id] = flow ~= nil and flow.unfinished == 0
    end
    past[i] = id and has_ended[id] or nil
  end
  return past
end

-- Return those of the unknown jobs for which new jobs wait.
local function keep_needed(unknown, past)
  local needed, kept = {}, {}
  for i = 1, #positions / POSITION_SIZE do
    local member = not past[i] and get_member(ARGV[next_value + i - 1]) or { conditions = {} }
    for _, condition in ipairs(member.conditions) do
      needed[condition.source] = true
    end
  end
  for _, id in ipairs(unknown) do
    if needed[pack_source(JOB_SOURCE, id)] then
      push(kept, id)
    end
  end
  return kept
end

-- Return a flow that is kept and is another one than that of the call, and its record; nil: there is none. It is another one also if a
-- group of the call is not kept.
local function find_other_flow()
  local records = {}
  for i = 1, #new_flows, 3 do
    local record = redis.call('HGET', flow_key, new_flows[i])
    if record and sub(record, FLOW_IDENTITY) ~= new_flows[i + 1] then
      return new_flows[i], record
    end
    records[new_flows[i]] = record
  end
  for i = 1, #new_flows, 3 do
    local _, _, _, length, rest = unpack_struct('>I4I4I1I2', new_flows[i + 1])
    local parent = sub(new_flows[i + 1], rest, rest + length - 1)
    if not records[new_flows[i]] and records[parent] then
      return parent, records[parent]
    end
  end
  return nil
end

-- Return a flow that has ended and would get a member; nil: there is none.
local function find_ended_flow()
  local has_ended = {}
  for i = 1, #grown_flows, 2 do
    has_ended[grown_flows[i]] = read_flow(grown_flows[i]).unfinished == 0
  end
  for i = 1, next(has_ended) and #positions / POSITION_SIZE or 0 do
    local member = get_member(ARGV[next_value + i - 1])
    if member and has_ended[member.counted] and redis.call('HEXISTS', job_seq_key, get_new_id(i)) == 0 then
      return member.counted
    end
  end
  return nil
end

-- Count the new members of stored flows, and close flows.
local function grow_flows(codes)
  local counts = {}
  for i = 1, #grown_flows, 2 do
    counts[grown_flows[i]] = 0
  end
  for i = 1, next(counts) and #codes or 0 do
    local member = codes[i] == CREATED and get_member(ARGV[next_value + i - 1])
    if member and counts[member.counted] then
      counts[member.counted] = counts[member.counted] + 1
    end
  end
  for i = 1, #grown_flows, 2 do
    local flow = read_flow(grown_flows[i])
    note_growth(flow, counts[flow.id])
    if grown_flows[i + 1] == '1' then
      note_closed(flow)
    end
  end
end

-- Count the members of new flows that were stored before and have ended: they outlived the flow of this id.
local function count_stored_members(codes, added)
  local ids = {}
  for i, code in ipairs(codes) do
    local member = code == EXISTS and get_member(ARGV[next_value + i - 1])
    if member and member.flow and added[member.counted] then
      push(ids, get_new_id(i))
    end
  end
  local fields = #ids > 0 and find_fields(ids) or {}
  for i, body in ipairs(get_in_batches(job_key, fields)) do
    if body and has_flag(body, FLAG_FINISHED) then
      forget_ended(fields[i], read_member(body))
      note_ends({ { code = read_job_end(body).code, count = 1, fields = { fields[i] }, bodies = { body } } })
    end
  end
end

-- Return the changes that conditions on these jobs follow, by source.
local function find_ended_jobs(ids)
  local transitions, fields, stored = {}, {}, {}
  for i, low in ipairs(get_in_batches(job_seq_key, ids)) do
    if low then
      push(fields, '\0\0' .. low)
      push(stored, ids[i])
    end
  end
  for i, body in ipairs(get_in_batches(job_key, fields)) do
    if body and has_flag(body, FLAG_FINISHED) then
      transitions[pack_source(JOB_SOURCE, stored[i])] = get_transition(read_job_end(body).code)
    end
  end
  return transitions
end

-- Let new members be cancelled if their flow fails, if it has `fail_fast`. `seq`: that before the first new job.
local function add_fail_fast(codes, seq)
  local added = {}
  for i, code in ipairs(codes) do
    if code == CREATED then
      seq = seq + 1
      local member = get_member(ARGV[next_value + i - 1])
      local root = member and member.own_source and read_flow(member.flow)
      if root and root.fails_fast then
        push_pair(added, 0, get_condition(member.own_source, OPEN, pack_struct('>I8', seq), FAILS_FAST))
        local transition = get_flow_transition(root)
        if transition then
          note_condition(member.own_source, transition)
        end
      end
    end
  end
  call_in_batches('ZADD', condition_key, added)
end

-- Add the conditions of the new jobs. Note those whose sources ended before.
local function add_conditions(suspended)
  local added, unmet, sources, seen, job_ids = {}, {}, {}, {}, {}
  for i = 1, #suspended, 2 do
    local field, member = suspended[i], read_member(suspended[i + 1])
    push_pair(unmet, field, pack_struct('>I2I2', #member.conditions, 0))
    for _, condition in ipairs(member.conditions) do
      push_pair(added, 0, get_condition(condition.source, get_condition_class(condition.on), field, condition.on))
      if not seen[condition.source] then
        seen[condition.source] = true
        push(sources, condition.source)
        if sub(condition.source, 1, 1) == JOB_SOURCE then
          push(job_ids, sub(condition.source, 4))
        end
      end
    end
  end
  call_in_batches('ZADD', condition_key, added)
  call_in_batches('HSET', unmet_key, unmet)
  local transitions = find_ended_jobs(job_ids)
  for _, source in ipairs(sources) do
    local flow = sub(source, 1, 1) == FLOW_SOURCE and read_flow(sub(source, 4))
    local transition = flow and get_flow_transition(flow) or transitions[source]
    if transition then
      note_condition(source, transition)
    end
  end
end

local unknown_jobs, unknown_flows = find_unknown_jobs(named_jobs), find_unknown_flows(named_flows)
local past = positions ~= '' and find_past_jobs() or {}
if #unknown_jobs > 0 and next(past) then
  unknown_jobs = keep_needed(unknown_jobs, past)
end
if #unknown_jobs + #unknown_flows > 0 then
  return { 'unknown', unknown_jobs, unknown_flows }
end
local other, other_record = find_other_flow()
if other then
  return { 'other', other, other_record }
end
local ended = find_ended_flow()
if ended then
  return { 'ended', ended, redis.call('HGET', flow_key, ended) }
end
local codes, holders, suspended, seq = {}, {}, nil, 0
if positions ~= '' then
  codes, holders, suspended, seq = enqueue_jobs(names, positions, next_value, past, is_same_flow)
end
local details, is_refused = {}, false
for _, code in ipairs(codes) do
  if code == CONFLICT or code == TAKEN then
    is_refused = true
  end
end
if not is_refused then
  local added = add_flows()
  if #added > 0 then
    count_stored_members(codes, added)
  end
  grow_flows(codes)
  add_conditions(suspended or {})
  add_fail_fast(codes, seq)
  resolve_changes()
end
write_lane_counts()
notify_marked()
for index, id in pairs(holders) do
  push_pair(details, index, id)
end
return { table.concat(codes), details }
