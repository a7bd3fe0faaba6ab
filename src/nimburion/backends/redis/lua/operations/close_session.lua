-- End a session: release what it holds, but for what still runs.
-- Keys: turn alive gone held lease job
-- Inputs: ARGV[3] id, [4] what still runs: seq 8 | token 20 each, [5] the most to release
-- Result: 'gone' (nothing was to do), 'more' (call again), 'done'
-- Atomic: each call is one script and leaves a true state: a session with fewer leases
local turn = redis.call('HGET', turn_key, ARGV[3])
if not turn or string.sub(turn, 29, 29) == 'd' then
  return 'gone'
end
local session4, running, most = string.sub(turn, 1, 4), {}, tonumber(ARGV[5])
for at = 1, #ARGV[4], 28 do
  running[string.sub(ARGV[4], at, at + 27)] = true
end
local kept, released, more = 0, 0, false
for _, member in ipairs(redis.call('ZRANGEBYLEX', held_key, '[' .. session4, after(session4))) do
  local field = string.sub(member, 5)
  local lease = redis.call('HGET', lease_key, field)
  if running[field .. string.sub(lease, 5, 24)] then
    kept = kept + 1
  elseif released == most then
    more = true
    break
  else
    released = released + 1
    take_back(field, lease, string.sub(lease, 42, 47))
  end
end
write_ledger()
count_lanes()
ring()
if more then
  return 'more'
end
if kept > 0 then
  redis.call('HSET', turn_key, ARGV[3], string.sub(turn, 1, 28) .. 'l' .. string.sub(turn, 30))
else
  bury(ARGV[3], turn)
end
return 'done'
