-- Shared part: the members of flows that this script has ended, and the durable runs that it has suspended.
-- Provides: ended_members: {{field, body before its end, code}, ...}; resolve_flows (see settles_members.lua) empties it
--   suspended_runs: {{field, sources}, ...}; the same empties it
-- Cost: none.
local ended_members, suspended_runs = {}, {}
