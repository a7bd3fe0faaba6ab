-- Shared part of exchange: the deliveries of an exchange that is repeated.
-- Keys: job lease session_leases
-- Provides: repeat_leases(session4, number8, nonce, most) -> deliveries and bodies as lease_jobs returns them, nonce
-- Atomic: it only reads, unless deliveries do not fit in the reply.
-- Cost: O(log n) per lease of the session, for n leases.

-- Requeue the deliveries that no longer fit in the reply, with their old counts and due times.
local function requeue_rest(found, first)
  for i = first, #found do
    local field, lease = found[i].field, found[i].lease
    local lane = get_lane(lease.lane4)
    refund_limits(field, lane, lease)
    end_lease(field, lease, lane)
    if lease.is_cancel_requested and not ask_to_end(field) then
      finish_job(field, redis.call('HGET', job_key, field), lane, CANCELLED, lease)
    else
      requeue(field, lease, lane)
    end
  end
  if first <= #found then
    write_buffer()
    resolve_flows()
    write_lane_counts()
    notify_marked()
  end
end

-- Return the deliveries and bodies of the repeated exchange, from the leases that have its number, in their old order, and the
-- nonce of these leases. A repetition may come with another nonce.
local function repeat_leases(session4, number8, nonce, most)
  local found = {}
  for _, member in ipairs(redis.call('ZRANGEBYLEX', session_leases_key, '[' .. session4, range_end(session4))) do
    local field = string.sub(member, 5)
    local lease = read_lease(redis.call('HGET', lease_key, field))
    if lease.number8 == number8 then
      push(found, { field = field, lease = lease })
    end
  end
  table.sort(found, function(delivered, other) return delivered.lease.index < other.lease.index end)
  local fields, parts = {}, {}
  for i, delivered in ipairs(found) do
    local lease = delivered.lease
    fields[i] = delivered.field
    parts[i] = lease.due8 .. delivered.field .. lease.fence4 .. lease.counts
    get_lane(lease.lane4)
  end
  if #fields == 0 then
    return '', {}, nonce
  end
  local count, found_bodies = read_bodies(fields, most)
  requeue_rest(found, count + 1)
  for i = #found, count + 1, -1 do
    parts[i], found_bodies[i] = nil, nil
  end
  return table.concat(parts), found_bodies, found[1].lease.nonce
end
