-- Shared part: the members of flows, their conditions, and how long they are kept.
-- Keys: flow condition unmet scheduled finished dead_letter_time result result_time flow_finished
-- Provides: read_member(body) -> {flow or nil, counted, conditions, own_source}; `counted` is the flow or the group that counts the job,
--   or nil; own_source: its flow as a source, or nil
--   read_flow_names(body) -> flow, counted: the same values
--   get_condition_class(on); get_condition(source, class, field, on) -> a member of `condition`
--   remove_conditions(field, body, member): `member` is nil if the job is no member
--   read_sources(record), remove_alternatives(field, body, record): the sources of which one is enough, in a record of `unmet`; removes
--     their conditions. push_alternatives(field, body, record, scheduled, conditions) adds them to these lists.
--   read_flow_record(id, record) -> a flow; find_flow(id) -> a flow or nil
--   is_running(id): whether a flow is kept and has not ended
--   keep_ended(fields, flow, code), forget_ended(field, member): add ended members to what `prune` looks at, or remove one;
--     write_kept() performs the writes of keep_ended
-- Cost: O(log n) per condition, for n conditions.
--
-- What `prune` finds by the ends of jobs, in `finished`, `dead_letter_time` and `result_time`, has no member of a flow that runs.
-- Those are in `flow_finished`, until their flow has ended and `prune` moves them.
local JOB_SOURCE, FLOW_SOURCE, SIGNAL_SOURCE, TIME_SOURCE = 'j', 'f', 's', 't'
local ON_SUCCESS, ON_FAILURE, ON_FINISHED, ON_ANY, FAILS_FAST = 's', 'f', 'e', 'a', 'n'
local OPEN_ON_END, OPEN, IMPOSSIBLE = 'e', 'o', 'x'
local ON_CODES = { success = ON_SUCCESS, failure = ON_FAILURE, finished = ON_FINISHED }
local FLOW_IDENTITY = 53
-- FAILS_FAST is in place of an end: the job does not wait for its flow, but is cancelled if the flow fails. `unmet` counts such a
-- condition only while it is impossible.

local flow_ids = {}

-- Return a flow's id as it is stored. Most members of a script have the same flow.
local function encode_flow_id(text)
  flow_ids[text] = flow_ids[text] or encode_id(text)
  return flow_ids[text]
end

local memberships = {}

-- Return what the options of a member say, which other members of a script often have too.
local function read_membership(text)
  local options = cjson.decode(text)
  local flow, conditions = options.flow and encode_flow_id(options.flow) or nil, {}
  for i, condition in ipairs(options.conditions or {}) do
    local kind = condition.source.kind == 'job' and JOB_SOURCE or FLOW_SOURCE
    conditions[i] = { source = pack_source(kind, encode_id(condition.source.id)), on = ON_CODES[condition.on or 'success'] }
  end
  local counted = flow
  if options.group then
    counted = options.group ~= '' and encode_flow_id(options.group) or nil -- empty: a callback, which nothing counts
  end
  return { flow = flow, counted = counted, conditions = conditions, own_source = counted and pack_source(FLOW_SOURCE, flow) or nil }
end

local function read_member(body)
  local text = get_options(body)
  memberships[text] = memberships[text] or read_membership(text)
  return memberships[text]
end

-- Options mostly begin with these names. Then the rest, in which most members differ, is not decoded.
local function read_flow_names(body)
  local text = get_options(body)
  local flow, following = string.match(text, '^ {"flow":"([^"\\]+)",?(.?.?.?.?.?.?.?)')
  local group = following == '"group"' and string.match(text, '^ {"flow":"[^"\\]+","group":"([^"\\]*)"')
  if not flow or following == '"group"' and not group then
    local member = read_member(body)
    return member.flow, member.counted
  end
  flow = encode_flow_id(flow)
  if not group then
    return flow, flow
  end
  return flow, group ~= '' and encode_flow_id(group) or nil
end


local function get_condition_class(on)
  return (on == ON_FINISHED or on == ON_ANY) and OPEN_ON_END or OPEN
end

local function get_condition(source, class, field, on)
  return source .. class .. field .. on
end

local function read_sources(record)
  local sources, at = {}, 5
  while at <= #record do
    local last = at + 2 + (unpack_struct('>I2', record, at + 1))
    push(sources, sub(record, at, last))
    at = last + 1
  end
  return sources
end

-- Add what is stored of the alternatives of a job to members of `scheduled` and of `condition`.
local function push_alternatives(field, body, record, scheduled, conditions)
  for _, source in ipairs(read_sources(record)) do
    if sub(source, 1, 1) == TIME_SOURCE then
      push(scheduled, sub(source, 4) .. field .. get_lane_number(body) .. get_rank(body) .. SUSPENDED)
    else
      push(conditions, get_condition(source, OPEN_ON_END, field, ON_ANY))
    end
  end
end

local function remove_alternatives(field, body, record)
  local scheduled, conditions = {}, {}
  push_alternatives(field, body, record, scheduled, conditions)
  call_in_batches('ZREM', scheduled_key, scheduled)
  call_in_batches('ZREM', condition_key, conditions)
end

-- Remove all conditions of a job that are not met.
local function remove_conditions(field, body, member)
  local removed, unmet = {}, redis.call('HGET', unmet_key, field)
  if unmet then
    redis.call('HDEL', unmet_key, field)
    remove_alternatives(field, body, unmet)
  end
  if not member then
    return
  end
  if member.own_source then
    push(removed, get_condition(member.own_source, OPEN, field, FAILS_FAST))
    push(removed, get_condition(member.own_source, IMPOSSIBLE, field, FAILS_FAST))
  end
  for _, condition in ipairs(unmet and member.conditions or {}) do
    push(removed, get_condition(condition.source, get_condition_class(condition.on), field, condition.on))
    push(removed, get_condition(condition.source, IMPOSSIBLE, field, condition.on))
  end
  call_in_batches('ZREM', condition_key, removed)
end

local function read_flow_record(id, record)
  local unfinished, completed, failed, cancelled, added, created8, finished8, grown8, position8, members, max_failed, fails_fast, length, rest
    = unpack_struct('>i4i4i4i4i4c8c8c8c8I4I4I1I2', record)
  return {
    id = id, unfinished = unfinished, completed = completed, failed = failed, cancelled = cancelled,
    added = added, created8 = created8, finished8 = finished8, grown8 = grown8, position8 = position8, members = members, max_failed = max_failed, fails_fast = fails_fast == 1,
    parent = length > 0 and sub(record, rest, rest + length - 1) or nil, identity = sub(record, FLOW_IDENTITY),
  }
end

local function find_flow(id)
  local record = redis.call('HGET', flow_key, id)
  return record and read_flow_record(id, record) or nil
end

local running_flows = {}

local function is_running(id)
  if running_flows[id] == nil then
    local flow = find_flow(id)
    running_flows[id] = flow ~= nil and flow.unfinished ~= 0
  end
  return running_flows[id]
end

-- Let `prune` find an ended job by its end. `ended` is in microseconds. A job that a replay of another one suspends again is kept as
-- long as a failed one.
local function index_end(field, code, ended, reason)
  local stays = code == FAILED or reason == 'dependency' or reason == 'not needed'
  redis.call('ZADD', stays and dead_letter_time_key or finished_key, ended, field)
  if code == COMPLETED and redis.call('HEXISTS', result_key, field) == 1 then
    redis.call('ZADD', result_time_key, ended, field)
  end
end

local kept_members = {}

local function keep_ended(fields, flow, code)
  if flow then
    local name, last = pack_name(flow), #kept_members
    for i = 1, #fields do
      kept_members[last + 1], kept_members[last + 2] = 0, name .. fields[i]
      last = last + 2
    end
  else
    for _, field in ipairs(fields) do
      index_end(field, code, now)
    end
  end
end

local function write_kept()
  call_in_batches('ZADD', flow_finished_key, kept_members)
  kept_members = {}
end

local function forget_ended(field, member)
  write_kept()
  if member.flow then
    redis.call('ZREM', flow_finished_key, pack_name(member.flow) .. field)
  end
  for _, key in ipairs({ finished_key, dead_letter_time_key, result_time_key }) do
    redis.call('ZREM', key, field)
  end
end
