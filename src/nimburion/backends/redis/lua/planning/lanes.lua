-- Part of planning: the jobs of a lane in their order, and the rank of the first one (backends/planning/lanes.py).
-- Provides: find_head(lane, ageing): sets the sort keys of a lane's first job, or returns false; is_before(lane, other)
--   add_returned(lane, member): adds a job that was parked
-- Cost: O(log n) per job, for n waiting jobs.
-- Set the sort keys of a lane's head: level (higher first), then rank, due, seq (lower first). Return false if the lane is empty.
local function find_head(lane, ageing)
  local member = lane.members[lane.at]
  if not member then
    if not read_more(lane, math.min(2 * lane.chunk, MAX_PARKED)) then
      return false
    end
    member = lane.members[1]
  end
  local due = decode_time(member, READY_DUE)
  lane.level = lane.priority
  if ageing > 0 and now > due then
    lane.level = lane.level + math.floor((now - due) / ageing)
  end
  lane.rank, lane.due = byte(member, READY_RANK), due
  lane.seq = unpack_struct('>I8', member, READY_SEQ)
  return true
end

local function is_before(lane, other)
  if lane.level ~= other.level then
    return lane.level > other.level
  end
  if lane.rank ~= other.rank then
    return lane.rank < other.rank
  end
  if lane.due ~= other.due then
    return lane.due < other.due
  end
  return lane.seq < other.seq
end

-- Put a job that returned to a lane in its place among the members that were read. The others are read in their order.
local function add_returned(lane, member)
  local members = lane.members
  local low, high = lane.at, #members + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_member_before(member, members[middle]) then
      high = middle
    else
      low = middle + 1
    end
  end
  local is_read = lane.is_exhausted and not (lane.following and is_member_before(lane.following, member))
  if is_read or members[low] or members[low - 1] and is_member_before(member, members[low - 1]) then
    table.insert(members, low, member)
  else
    write_returned()
  end
end
