-- Promote: make jobs that are due reservable.
-- Keys: due ready lanes
-- Inputs: ARGV[3] the most to move
-- Result: {how many, next due 8 or ''}
local count = promote(tonumber(ARGV[3]))
for _, lane in pairs(known_lanes) do
  mark(lane.queue)
end
count_lanes()
ring()
return { count, next_due() }
