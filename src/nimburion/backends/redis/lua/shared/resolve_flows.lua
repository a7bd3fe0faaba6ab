-- Shared part: applies what follows from the end of members of flows and from the suspension of runs, after write_buffer.
-- Keys: flow_change
-- Provides: resolve_flows(defers_uses): see resolve_changes. It does nothing if no member has ended, and no run was suspended.
--   continue_flows(defers_uses, may_have_left) -> whether a change is left: the same, also if a run is due, or earlier scripts have left
--     changes. It looks for these only if `may_have_left`.
-- Cost: see planning/flows.lua.
local function resolve_flows(defers_uses)
  if has_flow_changes() then
    resolve_changes(defers_uses)
  end
end

local function continue_flows(defers_uses, may_have_left)
  local is_needed = has_flow_changes() or may_have_left and redis.call('EXISTS', flow_change_key) == 1
  if is_needed or has_due_runs() then
    resolve_changes(defers_uses)
    return redis.call('EXISTS', flow_change_key) == 1
  end
  return false
end
