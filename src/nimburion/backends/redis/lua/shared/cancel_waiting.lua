-- Shared part: cancels jobs that wait for a worker. The caller then calls write_buffer().
-- Keys: attempt_state ready
-- Provides: describe_waiting(body) -> what finish_job needs of a job that was never leased
--   cancel_waiting(field, body, reason, keeps_payload) -> whether the job was cancelled: it has no lease and is not suspended. A durable
--     run that a worker ends is asked to end, and still waits.
-- Cost: O(log n) per job, for n waiting jobs.
local function describe_waiting(body)
  return { due8 = get_due(body), started8 = NO_TIME, counts = NO_COUNTS, fence4 = NO_FENCE, settled = NO_TOKEN }
end

local function cancel_waiting(field, body, reason, keeps_payload)
  local state, ready, scheduled = redis.call('HGET', attempt_state_key, field), nil, nil
  if state and ask_to_end(field) then
    return false
  end
  local attempts = state and read_attempt_state(state) or describe_waiting(body)
  local lane, rank, failed = get_lane(get_lane_number(body)), get_rank(body), has_failures(attempts.counts)
  local tenant, member, code = get_tenant(body), lane.number .. rank .. attempts.due8 .. field, failed and RETRYING or PENDING
  if not drop_parked(member) then
    if redis.call('ZSCORE', ready_key, member) then
      ready = member
    elseif not (tenant and drop_turn(lane, rank, attempts.due8, field, tenant)) then
      code = failed and RETRY_SCHEDULED or SCHEDULED
      scheduled = attempts.due8 .. field .. lane.number .. rank .. code .. get_tenant_suffix(tenant)
    end
    pass_turns(body, lane)
  end
  drop_waiting(field, state, ready, scheduled)
  lane[code] = lane[code] - 1
  finish_job(field, body, lane, CANCELLED, attempts, reason, nil, keeps_payload)
  return true
end
