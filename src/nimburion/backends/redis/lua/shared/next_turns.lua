-- Shared part of exchange: the group of a lane whose turn is next (see tenant_turns.lua).
-- Keys: tenant_turn
-- Provides: peek_turn(lane, missing) -> group, or nil. lane.turns is a heap of groups; only the first turns of a lane are read, at
--   least as many as jobs are missing. place_group(lane, group): the first job of a group is another one
-- Cost: two commands for these turns, and O(log n) per job, for n turns that were read.
local MIN_TURNS, MAX_TURNS = 16, 500

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
local function list_turns(lane, missing)
  local groups, most = {}, math.min(math.max(missing, MIN_TURNS), MAX_TURNS)
  if not lane.turns then
    lane.turns, lane.turns_low = {}, '[' .. lane.number
    for _, share in ipairs(list_shares()) do
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
local function place_group(lane, group)
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
local function peek_turn(lane, missing)
  if not lane.turns then
    list_turns(lane, missing)
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
      list_turns(lane, missing)
    else
      return group
    end
  end
end

