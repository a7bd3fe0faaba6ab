-- Sessions: all that are not over.
-- Keys: alive turn session held
-- Result: [id, its first 29 bytes of turn, what it said of itself (JSON), microseconds until it expires, leases, ...]
local alive, ids, told = redis.call('ZRANGE', alive_key, 0, -1, 'WITHSCORES'), {}, {}
for i = 1, #alive, 2 do
  push(ids, alive[i])
end
local turns, infos = gather(turn_key, ids), gather(session_key, ids)
for i, id in ipairs(ids) do
  local session4 = string.sub(turns[i], 1, 4)
  push_two(told, id, string.sub(turns[i], 1, 29))
  push_two(told, infos[i], string.format('%.0f', tonumber(alive[2 * i]) - alive_now))
  push(told, redis.call('ZLEXCOUNT', held_key, '[' .. session4, after(session4)))
end
return told
