-- Promote: make jobs that are due reservable.
-- Keys: scheduled ready lane_name
-- Inputs: ARGV[3] the most to move
-- Result: {how many, next due 8 or ''}
local count = promote_due(tonumber(ARGV[3]))
for _, lane in pairs(known_lanes) do
  mark_queue(lane.queue)
end
write_lane_counts()
notify_marked()
return { count, get_next_due() }
