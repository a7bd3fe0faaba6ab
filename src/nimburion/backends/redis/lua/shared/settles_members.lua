-- Shared part: applies what follows from the end of members of flows, after write_buffer.
-- Keys: flow_change scheduled
-- Provides: settles_members: true
--   resolve_flows(defers_uses): see resolve_changes. It does nothing if no member has ended, and no run was suspended.
--   continue_flows(defers_uses) -> whether a change is left: the same, also if earlier scripts have left changes, or a run is due
-- Cost: see planning/flows.lua.
local settles_members = true

local function resolve_flows(defers_uses)
  if #ended_members + #suspended_runs > 0 then
    resolve_changes(defers_uses)
  end
end

-- Return whether a job or a durable run is due.
local function is_any_due()
  local first = redis.call('ZRANGE', scheduled_key, 0, 0)[1]
  return first and decode_time(first, 1) <= now
end

local function continue_flows(defers_uses)
  local is_needed = #ended_members + #suspended_runs > 0 or redis.call('EXISTS', flow_change_key) == 1
  if is_needed or is_any_due() and #list_due(1) > 0 then
    resolve_changes(defers_uses)
    return redis.call('EXISTS', flow_change_key) == 1
  end
  return false
end
