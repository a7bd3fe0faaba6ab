-- Part of delete and prune: forget finished jobs for good.
-- Keys: job payload id history progress result resulted done dead dead_at void
-- Inputs: fields and their bodies
-- Result: forget(fields, bodies)
-- So many jobs of a block are gone. When all are, it joins the empty blocks beside it.
local function note_gone(block, by)
  if redis.call('HINCRBY', void_key, block, by) < BLOCK then
    return
  end
  local first = redis.call('HGET', void_key, '<' .. block - 1) or block
  local last = redis.call('HGET', void_key, '>' .. block + 1) or block
  redis.call('HDEL', void_key, block, '<' .. block - 1, '>' .. block + 1)
  redis.call('HSET', void_key, '>' .. first, last, '<' .. last, first)
end

local function forget(fields, bodies)
  local ids, gone = {}, {}
  for i, field in ipairs(fields) do
    local body = bodies[i]
    if body then
      local lane, at = lane_of(string.sub(body, 1, 4)), head_end(body) + 1
      local letter = string.sub(body, at, at)
      lane[letter] = lane[letter] - 1
      push(ids, id_of(body))
      local block = math.floor(((struct.unpack('>I8', field)) - 1) / BLOCK)
      gone[block] = (gone[block] or 0) + 1
    end
  end
  each_part('HDEL', id_key, ids)
  for _, key in ipairs({ job_key, payload_key, history_key, progress_key, result_key }) do
    each_part('HDEL', key, fields)
  end
  for _, key in ipairs({ resulted_key, done_key, dead_key, dead_at_key }) do
    each_part('ZREM', key, fields)
  end
  for block, by in pairs(gone) do
    note_gone(block, by)
  end
end
