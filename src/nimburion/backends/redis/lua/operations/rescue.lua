-- Rescue: sessions that expired are over; take back what they held.
-- Keys: turn alive gone orphan held lease job history
-- Inputs: ARGV[3] the most to take back, [4] losses that fail a job, [5] the history entry of a loss (JSON, but for its
--   attempt), in two parts: [5] before the number of the attempt, [6] behind it, [7] losses that make a suspect
-- Result: {[id, ...] returned, failed, cancelled, 1 when more are left}
-- Atomic: one script: the test of the expiry and the end of the session are one step, so a heartbeat comes before or after
local most, max_lost, suspect_after = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[7])
local left_behind = redis.call('ZRANGEBYSCORE', alive_key, '-inf', alive_now, 'LIMIT', 0, 100)
local orphans, turns, put_orphan, drop_orphan, put_history = redis.call('ZRANGE', orphan_key, 0, 99), {}, {}, {}, {}
for i, id in ipairs(left_behind) do
  local turn = redis.call('HGET', turn_key, id)
  local orphan = string.sub(turn, 1, 4) .. string.sub(turn, 29, 29)
  turns[i] = turn
  push(orphans, orphan)
  push_two(put_orphan, 0, orphan)
end

local returned, failed, cancelled, taken, more = {}, {}, {}, 0, false
for _, orphan in ipairs(orphans) do
  local session4, left = string.sub(orphan, 1, 4), string.sub(orphan, 5) == 'l'
  local members = redis.call('ZRANGEBYLEX', held_key, '[' .. session4, after(session4), 'LIMIT', 0, most - taken + 1)
  for _, member in ipairs(members) do
    if taken == most then
      more = true
      break
    end
    taken = taken + 1
    local field = string.sub(member, 5)
    local lease, body = redis.call('HGET', lease_key, field), redis.call('HGET', job_key, field)
    local counts = string.sub(lease, 42, 47)
    local lost = struct.unpack('>I2', counts, 5)
    -- A suspect that was held beside other jobs had not begun.
    local spared = left or (lost >= suspect_after and #members > 1)
    if not spared then
      lost = lost + 1
      local json = ARGV[5] .. (struct.unpack('>I4', counts)) + lost .. ARGV[6]
      push_two(put_history, field, (redis.call('HGET', history_key, field) or '') .. now8
        .. struct.pack('>I4', #json) .. json)
      counts = string.sub(counts, 1, 4) .. struct.pack('>I2', lost)
    end
    if not spared and lost >= max_lost and string.byte(lease, 41) ~= 49 then
      local lane = lane_of(string.sub(lease, 50, 53))
      end_lease(field, lease, lane)
      finish(field, body, lane, 'F', past_of(lease, counts), 'lost')
      push(failed, id_of(body))
    else
      push(take_back(field, lease, counts) and returned or cancelled, id_of(body))
    end
  end
  if more then
    break
  end
  push(drop_orphan, orphan)
end

for i, id in ipairs(left_behind) do
  bury(id, turns[i])
end
each_part('ZADD', orphan_key, put_orphan)
each_part('ZREM', orphan_key, drop_orphan)
each_part('HSET', history_key, put_history)
write_ledger()
count_lanes()
ring()
return { returned, failed, cancelled, (more or #left_behind == 100) and 1 or 0 }
