-- continue_flows: applies what earlier scripts have left of the changes of members of flows, and closes late flows.
-- Keys: scheduled flow open_flow
-- Arguments: ARGV[3] the time in microseconds after which open flows that got no members are closed, up to MAX_CLOSED of them; '': none are
-- Reply: next due time 8 or ''
-- Atomic: one script, which applies up to 500 conditions.
-- Cost: O(log n) per condition, for n conditions and waiting jobs.
local MAX_CLOSED = 100

if ARGV[3] ~= '' then
  local latest = string.format('(%.0f', now - tonumber(ARGV[3]))
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', open_flow_key, '-inf', latest, 'LIMIT', 0, MAX_CLOSED)) do
    note_closed(read_flow(id), true)
  end
end
resolve_changes()
write_lane_counts()
notify_marked()
return get_next_due()
