-- continue_flows: applies what earlier scripts have left of the changes of members of flows.
-- Keys: scheduled
-- Reply: next due time 8 or ''
-- Atomic: one script, which applies up to 500 conditions.
-- Cost: O(log n) per condition, for n conditions and waiting jobs.
resolve_changes()
write_lane_counts()
notify_marked()
return get_next_due()
