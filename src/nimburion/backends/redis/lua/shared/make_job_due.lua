-- Shared part of make_due and advance_bulk_operation: makes jobs due that wait for a later time.
-- Keys: attempt_state lease scheduled
-- Provides: make_job_due(field, body) -> whether the job waited for a later time. The caller then calls write_buffer().
-- Cost: O(log n) for n waiting jobs.
local function make_job_due(field, body)
  if has_flag(body, FLAG_FINISHED) or redis.call('HEXISTS', lease_key, field) == 1 then
    return false
  end
  local state = redis.call('HGET', attempt_state_key, field)
  local attempts = state and read_attempt_state(state)
    or { due8 = get_due(body), started8 = NO_TIME, counts = NO_COUNTS, fence4 = NO_FENCE, settled = NO_TOKEN }
  if decode_time(attempts.due8, 1) <= now then
    return false
  end
  local lane, code = get_lane(get_lane_number(body)), has_failures(attempts.counts) and RETRY_SCHEDULED or SCHEDULED
  attempts.rank, attempts.tenant = get_rank(body), get_tenant(body)
  push(writes.drop_scheduled, attempts.due8 .. field .. lane.number .. attempts.rank .. code .. get_tenant_suffix(attempts.tenant))
  lane[code] = lane[code] - 1
  requeue(field, attempts, lane, now8)
  return true
end
