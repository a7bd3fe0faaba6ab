-- Part of planning: the turns of tenants: who is next in a queue, and what a tenant is charged (backends/planning/fairness.py;
-- core/fairness.py explains the arithmetic).
-- Keys: tenant_job tenant_turn tenant_share share_class tenant_weight
-- Provides: add_turn(lane, rank, due8, field, tenant, was_parked) -> its group: a job of a tenant is due
--   drop_turn(lane, rank, due8, field, tenant) -> whether the job waited for a turn; it does so no more
--   read_charged(records of `lease`): reads the shares of many leases with one command
--   settle_charge(lease, lane, ran): ends the charge of a lease. `ran`: whether its handler may have run
--   charge_tenant(group) -> {group, place, charge, ...}, which undo_charge needs: a list, as the tables below
--   undo_charge(undo), move_group(group): the first job of a group does not wait any more
--   find_turn(lane, missing) -> the group of a lane whose turn is next, or nil. lane.turns is a heap of groups; only the first turns of
--     a lane are read, at least as many as jobs are missing
--   push_group(lane, group): the first job of a group is another one; is_turn_before(group, other)
--   stop_waiting(group, place): a job of a group does not wait any more; any_shares(): whether shares were read
--   has_turns(lane4), write_turns()
-- Idle: write_turns any_shares
-- A share is what a tenant has used in a class: a queue and a rank. A group has the waiting jobs of a tenant, rank and lane; its place
-- is due 8 | seq 8 of the first one.
-- Atomic: a due job of a tenant is in `tenant_job` and not in `ready`. `tenant_turn` has the first job of each group. Changes are
--   collected in shares; write_turns writes them, and cannot fail.
-- Cost: a few commands per tenant and script, and one per job that is reserved; O(log n) per job, for n turns that were read. Nothing
--   for other jobs.
local MIN_TURNS, MAX_TURNS = 16, 500
local NEVER_JOINED = -1
local FIRST_CHARGE, MAX_DOUBLINGS, MIN_CHARGE, MAX_CHARGE, WEIGHT_UNITS = 100000, 9, 1000, 86400000000, 100
-- The size of the fixed part of a share, and of a group in it
local SHARE_HEAD_SIZE, SHARE_GROUP_SIZE = 21, 20
-- Positions in a share and in a group: an exchange makes hundreds of them, and tables with names take twice as long. GROUP_KEY_PLACE
-- and those after it are what the heaps of turns compare.
local SHARE_CLASS, SHARE_TENANT, SHARE_TIME, SHARE_MEAN, SHARE_UNMEASURED, SHARE_LEASED, SHARE_GROUPS = 1, 2, 3, 4, 5, 6, 7
local SHARE_IS_STORED, SHARE_WAS_BUSY, SHARE_IS_CHANGED, SHARE_FIELD = 8, 9, 10, 11
-- The groups as they are stored, until get_groups reads them, and the virtual time in the stored turns
local SHARE_UNREAD, SHARE_STORED_TIME = 12, 13
local GROUP_SHARE, GROUP_LANE4, GROUP_PLACE, GROUP_STORED, GROUP_BEFORE_PLACE, GROUP_MEMBERS, GROUP_AT, GROUP_CHUNK = 1, 2, 3, 4, 5, 6, 7, 8
local GROUP_IS_LISTED, GROUP_KEY_PLACE, GROUP_KEY_RANK, GROUP_KEY_TIME, GROUP_KEY_DUE, GROUP_KEY_SEQ = 9, 10, 11, 12, 13, 14
-- `shares` are those that were read; a class knows its own by tenant.
local turns = { classes = {}, by_queue = {}, shares = {}, weights = {}, put = {}, dropped = {}, dropped_turns = {} }

-- --- shares ---

local function get_class(queue, rank)
  local by_rank = turns.by_queue[queue]
  if not by_rank then
    by_rank = {}
    turns.by_queue[queue] = by_rank
  end
  local class = by_rank[rank]
  if not class then
    local field = queue .. '\0' .. rank
    class = { field = field, rank = rank, min_virtual_time = 0, busy = 0, shares = 0, known = {} }
    local record = redis.call('HGET', share_class_key, field)
    if record then
      class.min_virtual_time, class.busy, class.shares = unpack_struct('>I8I4I4', record)
    end
    by_rank[rank], turns.classes[field] = class, class
  end
  return class
end

local function make_turn(share, time, lane4, place)
  return lane4 .. share[SHARE_CLASS].rank .. pack_struct('>I8', time) .. place .. share[SHARE_TENANT]
end

-- Return the share of a tenant; `record` is its field in `tenant_share`, or false. A tenant that never joined is below every minimum virtual time.
local function read_share(class, tenant, record, field)
  local share = { class, tenant, NEVER_JOINED, 0, 0, 0, false, record and true or false, false, false, field or false, '', 0 }
  if record then
    share[SHARE_TIME], share[SHARE_MEAN], share[SHARE_UNMEASURED], share[SHARE_LEASED] = unpack_struct('>I8I8BI4', record)
    share[SHARE_UNREAD], share[SHARE_STORED_TIME] = sub(record, SHARE_HEAD_SIZE + 1), share[SHARE_TIME]
  end
  share[SHARE_WAS_BUSY] = share[SHARE_LEASED] > 0 or share[SHARE_UNREAD] ~= ''
  return share
end

-- Read the shares of tenants that are not known yet, with one command. `classes` and `tenants` are lists of the same length.
local function read_shares(classes, tenants)
  local fields, unknown, count = {}, {}, 0
  for i = 1, #tenants do
    if not classes[i].known[tenants[i]] then
      count = count + 1
      fields[count], unknown[count] = classes[i].field .. tenants[i], i
    end
  end
  local records = get_in_batches(tenant_share_key, fields)
  for i = 1, count do
    local at = unknown[i]
    local known, tenant = classes[at].known, tenants[at]
    if not known[tenant] then
      known[tenant] = read_share(classes[at], tenant, records[i], fields[i])
      push(turns.shares, known[tenant])
    end
  end
end

local function get_share(class, tenant)
  local share = class.known[tenant]
  if not share then
    local field = class.field .. tenant
    share = read_share(class, tenant, redis.call('HGET', tenant_share_key, field), field)
    class.known[tenant] = share
    push(turns.shares, share)
  end
  return share
end

-- Return the weight of a tenant in hundredths.
local function get_weight(tenant)
  if turns.has_weights == nil then
    turns.has_weights = redis.call('HLEN', tenant_weight_key) > 0
  end
  if not turns.has_weights then
    return WEIGHT_UNITS
  end
  if not turns.weights[tenant] then
    turns.weights[tenant] = tonumber(redis.call('HGET', tenant_weight_key, tenant) or WEIGHT_UNITS)
  end
  return turns.weights[tenant]
end

local function compute_charge(run_time, tenant)
  return math.floor(math.min(math.max(run_time, MIN_CHARGE), MAX_CHARGE) * WEIGHT_UNITS / get_weight(tenant))
end

-- Return what the next job of a tenant is charged when it is reserved.
local function expect_charge(share)
  local expected = share[SHARE_MEAN]
  if expected == 0 then
    expected = FIRST_CHARGE * 2 ^ math.min(share[SHARE_UNMEASURED], MAX_DOUBLINGS)
  end
  return compute_charge(expected, share[SHARE_TENANT])
end

-- Let a tenant join those that wait: behind them, or at the minimum if its job was parked (see core/fairness.py).
local function join_turns(share, was_parked)
  local minimum = share[SHARE_CLASS].min_virtual_time
  if share[SHARE_TIME] < minimum then
    share[SHARE_TIME] = was_parked and minimum or minimum + expect_charge(share)
  end
end

-- --- groups ---

local function make_group(share, lane4, place, stored)
  local before_place = lane4 .. share[SHARE_CLASS].rank .. share[SHARE_TENANT] .. '\0'
  return { share, lane4, place, stored or false, before_place, false, 0, 1, false, false, 0, 0, 0, 0 }
end

-- Return the range of the members of `tenant_job` of a group that come after a place.
local function get_range_after(group, place)
  return '(' .. group[GROUP_BEFORE_PLACE] .. place, '(' .. sub(group[GROUP_BEFORE_PLACE], 1, -2) .. '\1'
end

-- Return the groups of a share by lane. Most shares of leases that end do not need them. `turn` is its member of `tenant_turn` in the
-- lane `lane4`, if it is known.
local function get_groups(share, lane4, turn)
  local groups, unread = share[SHARE_GROUPS], share[SHARE_UNREAD]
  if not groups then
    groups = {}
    share[SHARE_GROUPS] = groups
    for at = 1, #unread, SHARE_GROUP_SIZE do
      local number, place = sub(unread, at, at + 3), sub(unread, at + 4, at + 19)
      groups[number] = make_group(share, number, place, number == lane4 and turn or make_turn(share, share[SHARE_STORED_TIME], number, place))
    end
  end
  return groups
end

-- Write the jobs that began or ceased to wait. Called before `tenant_job` is read.
local function write_tenant_jobs()
  if #turns.dropped > 0 then
    call_in_batches('ZREM', tenant_job_key, turns.dropped)
    turns.dropped = {}
  end
  if #turns.put > 0 then
    call_in_batches('ZADD', tenant_job_key, turns.put)
    turns.put = {}
  end
end

local function any_shares()
  return #turns.shares > 0
end

local function stop_waiting(group, place)
  if #turns.put > 0 then
    write_tenant_jobs() -- the job may be among those that began to wait in this script
  end
  push(turns.dropped, group[GROUP_BEFORE_PLACE] .. place)
end

local function add_turn(lane, rank, due8, field, tenant, was_parked)
  local share, place = get_share(get_class(lane.queue, rank), tenant), due8 .. field
  local groups = get_groups(share)
  local group = groups[lane.number]
  if not group then
    join_turns(share, was_parked)
    group = make_group(share, lane.number, place)
    groups[lane.number] = group
  elseif is_earlier(place, group[GROUP_PLACE]) then
    group[GROUP_PLACE] = place
  end
  group[GROUP_MEMBERS], share[SHARE_IS_CHANGED] = false, true
  turns.is_read_again = turns.is_read_again or #turns.dropped > 0 -- it may come before a job that was dropped
  push_pair(turns.put, 0, group[GROUP_BEFORE_PLACE] .. place)
  return group
end

-- Let the job after the first one of a group be its first, or forget the group.
local function move_group(group)
  local share = group[GROUP_SHARE]
  group[GROUP_AT] = group[GROUP_AT] + 1
  local place = group[GROUP_MEMBERS] and group[GROUP_MEMBERS][group[GROUP_AT]]
  if not place then
    if turns.is_read_again or #turns.put > 0 then
      write_tenant_jobs()
    end
    local low, high = get_range_after(group, group[GROUP_PLACE])
    local most = group[GROUP_CHUNK]
    local members = redis.call('ZRANGEBYLEX', tenant_job_key, low, high, 'LIMIT', 0, most)
    for i = 1, #members do
      members[i] = sub(members[i], #group[GROUP_BEFORE_PLACE] + 1)
    end
    group[GROUP_MEMBERS], group[GROUP_AT], group[GROUP_CHUNK] = members, 1, math.min(2 * most, 500)
    place = members[1]
  end
  group[GROUP_PLACE], share[SHARE_IS_CHANGED] = place, true
  if not place then
    share[SHARE_GROUPS][group[GROUP_LANE4]] = nil
    if group[GROUP_STORED] then
      push(turns.dropped_turns, group[GROUP_STORED])
      group[GROUP_STORED] = false
    end
  end
end

local function drop_turn(lane, rank, due8, field, tenant)
  write_tenant_jobs()
  local share, place = get_share(get_class(lane.queue, rank), tenant), due8 .. field
  local group = get_groups(share)[lane.number]
  if not group or redis.call('ZREM', tenant_job_key, group[GROUP_BEFORE_PLACE] .. place) == 0 then
    return false
  end
  if group[GROUP_PLACE] == place then
    group[GROUP_MEMBERS] = false
    move_group(group)
  end
  share[SHARE_IS_CHANGED] = true
  return true
end

-- --- charges ---

-- Read the shares of leases that end; `records` of `lease`, or false.
local function read_charged(records)
  local classes, tenants, count = {}, {}, 0
  for i = 1, #records do
    local lane4, rank, tenant = read_turn(records[i])
    if lane4 then
      count = count + 1
      classes[count], tenants[count] = get_class(get_lane(lane4).queue, rank), tenant
    end
  end
  if count > 0 then
    read_shares(classes, tenants)
  end
end

local function settle_charge(lease, lane, ran)
  local share, used = get_share(get_class(lane.queue, lease.rank), lease.tenant), 0
  if ran then
    local run_time = math.min(math.max(now - decode_time(lease.started8, 1), 0), MAX_CHARGE)
    used = compute_charge(run_time, lease.tenant)
    share[SHARE_MEAN] = math.max(share[SHARE_MEAN] > 0 and math.floor((7 * share[SHARE_MEAN] + run_time) / 8) or run_time, 1)
  end
  share[SHARE_TIME], share[SHARE_LEASED] = share[SHARE_TIME] + used - lease.charge, share[SHARE_LEASED] - 1
  share[SHARE_IS_CHANGED] = true
end

-- Charge the first job of a group, which is reserved, and remove it from the group. It leaves `tenant_job` at once: a parked job that
-- returns may come before it, and the group is read again from that one on.
local function charge_tenant(group)
  local share = group[GROUP_SHARE]
  local class = share[SHARE_CLASS]
  local place, time, unmeasured, minimum = group[GROUP_PLACE], share[SHARE_TIME], share[SHARE_UNMEASURED], class.min_virtual_time
  local charge = expect_charge(share)
  if share[SHARE_MEAN] == 0 then
    share[SHARE_UNMEASURED] = math.min(unmeasured + 1, 255)
  end
  class.min_virtual_time, class.is_changed = math.max(time, minimum), true
  share[SHARE_TIME], share[SHARE_LEASED] = class.min_virtual_time + charge, share[SHARE_LEASED] + 1
  stop_waiting(group, place)
  move_group(group)
  return { group, place, charge, time, unmeasured, minimum }
end

-- Return the job that was charged last to its group: it does not fit in the reply.
local function undo_charge(undo)
  local group, place, _, time, unmeasured, minimum = unpack(undo)
  local share = group[GROUP_SHARE]
  share[SHARE_TIME], share[SHARE_UNMEASURED], share[SHARE_LEASED] = time, unmeasured, share[SHARE_LEASED] - 1
  share[SHARE_CLASS].min_virtual_time = minimum
  push_pair(turns.put, 0, group[GROUP_BEFORE_PLACE] .. place)
  local groups, lane4 = share[SHARE_GROUPS], group[GROUP_LANE4]
  local current = groups[lane4]
  if current and is_earlier(current[GROUP_PLACE], place) then
    group, place = current, current[GROUP_PLACE] -- a parked job has returned since
  end
  group[GROUP_PLACE], group[GROUP_MEMBERS], groups[lane4] = place, false, group
end

-- --- the group of a lane whose turn is next ---

-- Compare two groups by what was known of them when they were placed in the heap.
local function is_turn_before(group, other)
  if group[GROUP_KEY_RANK] ~= other[GROUP_KEY_RANK] then
    return group[GROUP_KEY_RANK] < other[GROUP_KEY_RANK]
  end
  if group[GROUP_KEY_TIME] ~= other[GROUP_KEY_TIME] then
    return group[GROUP_KEY_TIME] < other[GROUP_KEY_TIME]
  end
  if group[GROUP_KEY_DUE] ~= other[GROUP_KEY_DUE] then
    return group[GROUP_KEY_DUE] < other[GROUP_KEY_DUE]
  end
  return group[GROUP_KEY_SEQ] < other[GROUP_KEY_SEQ]
end

local function set_turn_key(group)
  local share, place = group[GROUP_SHARE], group[GROUP_PLACE]
  group[GROUP_KEY_PLACE], group[GROUP_KEY_RANK], group[GROUP_KEY_TIME] = place, byte(share[SHARE_CLASS].rank), share[SHARE_TIME]
  group[GROUP_KEY_DUE], group[GROUP_KEY_SEQ] = read_place(place)
end

-- Add the groups of a lane that are not in its heap yet, and make it a heap again.
local function add_to_heap(lane, groups)
  for i = 1, #groups do
    local group = groups[i]
    if not group[GROUP_IS_LISTED] then
      group[GROUP_IS_LISTED] = true
      set_turn_key(group)
      push(lane.turns, group)
    end
  end
  for at = math.floor(#lane.turns / 2), 1, -1 do
    sift_down(lane.turns, at, #lane.turns, is_turn_before)
  end
end

-- Read the next turns of a lane. Shares that changed in this script are not as `tenant_turn` says, so theirs are listed first.
local function read_turns(lane, missing)
  local groups, most = {}, math.min(math.max(missing, MIN_TURNS), MAX_TURNS)
  if not lane.turns then
    lane.turns, lane.turns_low = {}, '[' .. lane.number
    for _, share in ipairs(turns.shares) do
      if share[SHARE_IS_CHANGED] then
        push(groups, get_groups(share)[lane.number])
      end
    end
  end
  local members = redis.call('ZRANGEBYLEX', tenant_turn_key, lane.turns_low, range_end(lane.number), 'LIMIT', 0, most)
  local classes, tenants = {}, {}
  for i = 1, #members do
    classes[i], tenants[i] = get_class(lane.queue, sub(members[i], TURN_RANK, TURN_RANK)), sub(members[i], TURN_TENANT)
  end
  read_shares(classes, tenants)
  for i = 1, #members do
    push(groups, get_groups(get_share(classes[i], tenants[i]), lane.number, members[i])[lane.number])
  end
  add_to_heap(lane, groups)
  local last, last_turn = members[most], {}
  if last then
    lane.turns_low = '(' .. last
    last_turn[GROUP_KEY_RANK], last_turn[GROUP_KEY_TIME] = byte(last, TURN_RANK), (unpack_struct('>I8', last, TURN_TIME))
    last_turn[GROUP_KEY_DUE], last_turn[GROUP_KEY_SEQ] = read_place(sub(last, TURN_PLACE, TURN_PLACE_END))
  end
  lane.last_turn = last and last_turn
end

-- Place a group in the heap of its lane again: a parked job returned to it, so its key is lower, or it is new.
local function push_group(lane, group)
  if lane.turns then
    set_turn_key(group)
    add_to_heap(lane, { group })
  end
end

local function drop_first(heap)
  heap[1][GROUP_IS_LISTED] = false
  heap[1] = heap[#heap]
  heap[#heap] = nil
  if heap[1] then
    sift_down(heap, 1, #heap, is_turn_before)
  end
end

-- Return whether the first job of a group comes after one that still returns to the lane.
local function follows_returning(lane, group)
  return lane.following and not is_member_before(lane.number .. group[GROUP_SHARE][SHARE_CLASS].rank .. group[GROUP_PLACE], lane.following)
end

-- Return the group of a lane whose turn is next, or nil. The keys of groups only grow while jobs are reserved, so a group with an old
-- key is placed again when it comes to the top. While parked jobs return to the lane, turns that must wait for these are left out; if
-- there are many, only the first ones of the lane are read.
local function find_turn(lane, missing)
  if not lane.turns then
    read_turns(lane, missing)
  end
  local heap, left_out = lane.turns, 0
  while true do
    local group = heap[1]
    if group and not group[GROUP_PLACE] then
      drop_first(heap)
    elseif group and follows_returning(lane, group) then
      drop_first(heap)
      left_out = left_out + 1
      if left_out >= MAX_TURNS then
        lane.last_turn = nil
      end
    elseif group and (group[GROUP_KEY_TIME] ~= group[GROUP_SHARE][SHARE_TIME] or group[GROUP_KEY_PLACE] ~= group[GROUP_PLACE]) then
      set_turn_key(group)
      sift_down(heap, 1, #heap, is_turn_before)
    elseif lane.last_turn and (not group or is_turn_before(lane.last_turn, group)) then
      read_turns(lane, missing)
    else
      return group
    end
  end
end

-- --- writing ---

-- Return whether jobs of tenants wait in a lane, as write_turns wrote them.
local function has_turns(lane4)
  return #redis.call('ZRANGEBYLEX', tenant_turn_key, '[' .. lane4, range_end(lane4), 'LIMIT', 0, 1) > 0
end

-- Collect the turns of a share that changed since they were stored. Return its groups, as they are stored.
local function collect_turns(share, put_turns)
  local groups, unread, time = share[SHARE_GROUPS], share[SHARE_UNREAD], share[SHARE_TIME]
  if not groups then
    for at = 1, time ~= share[SHARE_STORED_TIME] and #unread or 0, SHARE_GROUP_SIZE do
      local lane4, place = sub(unread, at, at + 3), sub(unread, at + 4, at + 19)
      push(turns.dropped_turns, make_turn(share, share[SHARE_STORED_TIME], lane4, place))
      push_pair(put_turns, 0, make_turn(share, time, lane4, place))
    end
    return unread
  end
  local stored = ''
  for lane4, group in pairs(groups) do
    local turn = make_turn(share, time, lane4, group[GROUP_PLACE])
    stored = stored .. lane4 .. group[GROUP_PLACE]
    if turn ~= group[GROUP_STORED] then
      if group[GROUP_STORED] then
        push(turns.dropped_turns, group[GROUP_STORED])
      end
      push_pair(put_turns, 0, turn)
      group[GROUP_STORED] = turn
    end
  end
  return stored
end

-- Write the shares, turns and minimum virtual times that changed. An exchange does so after it settled, so that it reads the turns as they are, and
-- after it reserved.
local function write_turns()
  if #turns.shares == 0 then
    return
  end
  write_tenant_jobs()
  local put_turns, put_shares, put_classes = {}, {}, {}
  for _, share in ipairs(turns.shares) do
    if share[SHARE_IS_CHANGED] then
      local class, stored = share[SHARE_CLASS], collect_turns(share, put_turns)
      local head = pack_struct('>I8I8BI4', share[SHARE_TIME], share[SHARE_MEAN], share[SHARE_UNMEASURED], share[SHARE_LEASED])
      push_pair(put_shares, share[SHARE_FIELD], head .. stored)
      local is_busy = share[SHARE_LEASED] > 0 or stored ~= ''
      if is_busy ~= share[SHARE_WAS_BUSY] then
        class.busy, class.is_changed = class.busy + (is_busy and 1 or -1), true
      end
      if not share[SHARE_IS_STORED] then
        class.shares, class.is_changed = class.shares + 1, true
      end
      share[SHARE_WAS_BUSY], share[SHARE_IS_STORED], share[SHARE_IS_CHANGED] = is_busy, true, false
      share[SHARE_STORED_TIME] = share[SHARE_TIME]
    end
  end
  for field, class in pairs(turns.classes) do
    if class.is_changed then
      push_pair(put_classes, field, pack_struct('>I8I4I4', class.min_virtual_time, class.busy, class.shares))
      class.is_changed = false
    end
  end
  call_in_batches('ZREM', tenant_turn_key, turns.dropped_turns)
  call_in_batches('ZADD', tenant_turn_key, put_turns)
  call_in_batches('HSET', tenant_share_key, put_shares)
  call_in_batches('HSET', share_class_key, put_classes)
  turns.dropped_turns = {}
end
