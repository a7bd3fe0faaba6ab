-- explain_job: returns what decides whether a job can run.
-- Keys: job_seq job lease attempt_state limit limit_use parked tenant_job tenant_turn lane_name flow condition unmet
-- Arguments: ARGV[3] id
-- Reply: {} if there is no such job, else {now 8, {lane number, full name, ...}, details without payload (see job_details.lua),
--   pause of its queue or nil, {limits of its name or nil, limit NUL key that closes its lane, its use, its change or nil, holders of that
--   of the name among the first 2,000 leases (see limit_holders.lua), ...}, id of the job that holds its unique key or nil, sessions (see
--   read_sessions.lua),
--   {limit NUL key, use (see record_format.lua), number of parked jobs, ...} of its keys, limit NUL key for which it is parked or nil,
--   {tenant, microseconds ahead of the minimum, tenants before it, jobs before it} or {}: it waits for no turn,
--   {kind of a source, its id (of a signal, its name), on, details of the job or record of the flow or nil, ...}: the first
--   of the open conditions of a suspended job, or of the impossible ones of a cancelled job; their number}
-- Atomic: reads only; everything is of the same moment.
-- Cost: O(log n) per session, for n leases, and that of limit_holders.lua if its name has a limit.
local MAX_WAITING_COUNTED, MAX_UNMET = 10000, 10

-- Return the numbers of the lanes of a queue.
local function list_lanes_of_queue(queue)
  local found, flat = {}, redis.call('HGETALL', lane_name_key)
  for i = 1, #flat, 2 do
    if string.match(flat[i + 1], '^%Z*') == queue then
      push(found, flat[i])
    end
  end
  return found
end

local field = find_field(ARGV[3])
if not field then
  return {}
end
local body, lease = redis.call('HGET', job_key, field), redis.call('HGET', lease_key, field)
local state = redis.call('HGET', attempt_state_key, field)
local code, job_end = get_state_code(body, lease, state)
local lane = get_lane(get_lane_number(body))
local details = describe_job(field, body, code, lease or state, job_end, 0)
local unmet_numbers = redis.call('HGET', unmet_key, field)

-- Return the details of a job that is a source, or nil.
local function describe_source(id)
  local source_field = find_field(id)
  local source_body = source_field and redis.call('HGET', job_key, source_field)
  if not source_body then
    return false
  end
  local source_lease, source_state = redis.call('HGET', lease_key, source_field), redis.call('HGET', attempt_state_key, source_field)
  local source_code, source_end = get_state_code(source_body, source_lease, source_state)
  get_lane(get_lane_number(source_body))
  return (describe_job(source_field, source_body, source_code, source_lease or source_state, source_end, 0))
end

-- Return the first open conditions of a suspended job, or the first impossible ones of a cancelled job.
local function describe_unmet()
  local found, open_count = {}, 0
  local member = unmet_numbers and is_member(body) and read_member(body) or { conditions = {} }
  if code == CANCELLED and member.own_source then
    push(member.conditions, { source = member.own_source, on = FAILS_FAST })
  end
  for _, condition in ipairs(member.conditions) do
    local source, on = condition.source, condition.on
    local class = code == CANCELLED and IMPOSSIBLE or get_condition_class(on)
    local is_unmet = redis.call('ZSCORE', condition_key, get_condition(source, class, field, on))
    open_count = open_count + (is_unmet and 1 or 0)
    if is_unmet and #found < 4 * MAX_UNMET then
      local kind, id = sub(source, 1, 1), sub(source, 4)
      push_pair(found, kind, id)
      push_pair(found, on, kind == JOB_SOURCE and describe_source(id) or kind == FLOW_SOURCE and redis.call('HGET', flow_key, id) or false)
    end
  end
  for i, source in ipairs(code == SUSPENDED and unmet_numbers and read_sources(unmet_numbers) or {}) do
    local kind, id = sub(source, 1, 1), sub(source, 4)
    open_count = open_count + 1
    if #found < 4 * MAX_UNMET then
      push_pair(found, kind, kind == SIGNAL_SOURCE and sub(id, 9) or id)
      push_pair(found, ON_ANY, kind == FLOW_SOURCE and redis.call('HGET', flow_key, id) or false)
    end
  end
  return found, open_count
end

local unmet, unmet_count = describe_unmet()
local names = list_lane_names()
local holder = has_flag(body, FLAG_UNIQUE_KEY) and find_key_holder((get_key_field(body, lane.name))) or false
local closing = { redis.call('HGET', limit_key, lane.name) }
for _, limit in ipairs(list_lane_limits(lane.queue, lane.name)) do
  local name = limit[LIMIT_NAME]
  local holders = get_limited_job(name) and limit[LIMIT_MAXIMUM] and find_holders({ lane.name }, 0) or {}
  push_pair(closing, name, redis.call('HGET', limit_use_key, name) or '0')
  push_pair(closing, redis.call('HGET', limit_change_key, (string.match(name, '^%Z*'))), holders[2] or {})
end
local uses = {}
for _, limit in ipairs(list_limits(lane, body)) do
  local use, count = redis.call('HGET', limit_use_key, limit[LIMIT_NAME]), redis.call('ZLEXCOUNT', parked_key, get_parked_range(limit[LIMIT_NAME]))
  if use and (count > 0 or string.sub(use, 1, 2) ~= '0 ') then
    push_pair(uses, limit[LIMIT_NAME], use)
    push(uses, count)
  end
end
local due8 = state and read_attempt_state(state).due8 or get_due(body)
local parked_for = not job_end and not lease and (find_parked(lane.number .. get_rank(body) .. due8 .. field)) or false

-- Return how many other tenants of its queue have waiting jobs of this priority, and a lower virtual time.
local function count_tenants_before(share)
  local before, found, low = 0, {}, get_rank(body)
  for _, other in ipairs(list_lanes_of_queue(lane.queue)) do
    local range = other .. low
    for _, turn in ipairs(redis.call('ZRANGEBYLEX', tenant_turn_key, '[' .. range, '(' .. range .. pack_struct('>I8', share[SHARE_TIME]), 'LIMIT', 0, MAX_WAITING_COUNTED)) do
      local tenant = sub(turn, TURN_TENANT)
      if not found[tenant] then
        found[tenant], before = true, before + 1
      end
    end
  end
  return before
end

local function describe_turn(tenant)
  local share = get_share(get_class(lane.queue, get_rank(body)), tenant)
  local group = get_groups(share)[lane.number]
  local place = due8 .. field
  if not group or not redis.call('ZSCORE', tenant_job_key, group[GROUP_BEFORE_PLACE] .. place) then
    return {}
  end
  local own = redis.call('ZLEXCOUNT', tenant_job_key, '[' .. group[GROUP_BEFORE_PLACE], '(' .. group[GROUP_BEFORE_PLACE] .. place)
  return { tenant, math.max(0, share[SHARE_TIME] - share[SHARE_CLASS].min_virtual_time), count_tenants_before(share), math.min(own, MAX_WAITING_COUNTED) }
end

local tenant = not job_end and not lease and get_tenant(body)
return {
  now8, names, details, read_pauses()[lane.queue] or false, closing, holder, read_sessions(),
  uses, parked_for, tenant and describe_turn(tenant) or {},
  unmet, unmet_count,
}
