-- Shared part: the names of flows and of sources in members of sorted sets.
-- Provides: pack_name(id): the id of a flow in front of other fields; pack_source(kind, id) -> a source
local function pack_name(id)
  return pack_struct('>I2', #id) .. id
end

local function pack_source(kind, id)
  return kind .. pack_name(id)
end
