-- Shared part of the exchange of a worker that has settled no member of a flow, and no durable run. It lacks the parts for these.
-- Provides: settles_members: false
--   resolve_flows(), continue_flows(): do nothing
-- Cost: none.
local settles_members = false

local function resolve_flows() end

local function continue_flows()
  return false
end
