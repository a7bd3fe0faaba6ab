-- Shared part of the exchange of a worker that has settled no member of a flow. It lacks the parts that count members.
-- Provides: settles_members: false
--   resolve_flows(), continue_flows(): do nothing
-- Cost: none.
local settles_members = false

local function resolve_flows() end

local function continue_flows()
  return false
end
