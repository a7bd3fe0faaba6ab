-- Shared part of exchange: whether a limit, a pause or a tenant may keep a job of a requested lane from running.
-- Keys: paused_queue concurrency_limit rate_limit keyed_limit changed_lane key_opening tenant_turn
-- Provides: is_restricted: whether there is a pause, a limit, a parked job that returns, or a tenant that waits for its turn, when the
--   script begins. Otherwise the exchange reads nothing more about them.
-- Cost: one command.
local is_restricted = redis.call(
  'EXISTS', paused_queue_key, concurrency_limit_key, rate_limit_key, keyed_limit_key, changed_lane_key, key_opening_key, tenant_turn_key
) > 0
