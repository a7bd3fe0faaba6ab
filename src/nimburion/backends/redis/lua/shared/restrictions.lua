-- Shared part of exchange: whether anything but its lane decides when a job may run.
-- Keys: paused_queue concurrency_limit rate_limit keyed_limit changed_lane key_opening tenant_turn
-- Provides: is_restricted: whether there is a pause, a limit, a parked job that returns, or a tenant that waits for its turn. If there
--   is none when the script begins, the exchange reads nothing more about them.
-- Cost: one command.
local is_restricted = redis.call(
  'EXISTS', paused_queue_key, concurrency_limit_key, rate_limit_key, keyed_limit_key, changed_lane_key, key_opening_key, tenant_turn_key
) > 0
