-- Shared part of cancel and fire: cancels a waiting job, or asks the worker of a running job to cancel it.
-- Keys: job attempt_state lease cancel_requested ready session_id
-- Provides: cancel_job(field, body) -> 'cancelled', 'requested' (the job runs; its session is notified) or
--   'finished'. The caller then calls write_buffer().
-- Cost: O(log n) for n waiting jobs.
local function cancel_job(field, body)
  if has_flag(body, FLAG_FINISHED) then
    return 'finished'
  end
  local lease = redis.call('HGET', lease_key, field)
  if lease then
    redis.call('HSET', lease_key, field, mark_lease_cancelled(lease))
    redis.call('HSET', cancel_requested_key, field, '1')
    local session = find_session(read_lease(lease).session4)
    if session then
      notify_session(get_session_id(session))
    end
    return 'requested'
  end
  local attempts
  local state = redis.call('HGET', attempt_state_key, field)
  if state then
    push(writes.drop_state, field)
    attempts = read_attempt_state(state)
  else
    attempts = { due8 = get_due(body), started8 = NO_TIME, counts = NO_COUNTS, fence4 = NO_FENCE, settled = NO_TOKEN }
  end
  local lane, rank, failed = get_lane(get_lane_number(body)), get_rank(body), has_failures(attempts.counts)
  local tenant, member, code = get_tenant(body), lane.number .. rank .. attempts.due8 .. field, failed and RETRYING or PENDING
  if drop_parked(member) then
    code = failed and RETRYING or PENDING
  elseif redis.call('ZSCORE', ready_key, member) then
    push(writes.drop_ready, member)
    pass_turns(body, lane)
  elseif tenant and drop_turn(lane, rank, attempts.due8, field, tenant) then
    pass_turns(body, lane)
  else
    pass_turns(body, lane)
    code = failed and RETRY_SCHEDULED or SCHEDULED
    push(writes.drop_scheduled, attempts.due8 .. field .. lane.number .. rank .. code .. get_tenant_suffix(tenant))
  end
  lane[code] = lane[code] - 1
  finish_job(field, body, lane, CANCELLED, attempts)
  return 'cancelled'
end
