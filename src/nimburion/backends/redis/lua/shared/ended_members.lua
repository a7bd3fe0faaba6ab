-- Shared part: the members of flows that this script has ended.
-- Provides: ended_members: {{field, body before its end, code}, ...}; resolve_flows (see settles_members.lua) empties it
-- Cost: none.
local ended_members = {}
