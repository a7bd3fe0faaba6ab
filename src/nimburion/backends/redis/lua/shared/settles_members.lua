-- Shared part: applies what follows from the end of members of flows, after write_buffer.
-- Keys: flow_change
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

local function continue_flows(defers_uses)
  if #ended_members + #suspended_runs > 0 or redis.call('EXISTS', flow_change_key) == 1 or #list_due(1) > 0 then
    resolve_changes(defers_uses)
    return redis.call('EXISTS', flow_change_key) == 1
  end
  return false
end
