-- Replay: let dead letters wait again. Same id, seq, payload and history; counts begin anew, fences go on rising.
-- Keys: job state ready dead dead_at
-- Inputs: as scan_jobs.lua has them, the filter's letter being F
-- Result: {the field to go on behind, 1 if nothing is left there, [id, ...] replayed, [id, ...] whose unique key another job
--   holds, the last of these fields or '', 1 if more are meant than were to be picked}
local most, ids, held, fields, last_field, more = tonumber(ARGV[6]), {}, {}, {}, '', false

-- Whether the job has no unique key, or may have it again.
local function has_key(body, lane)
  if not has(body, KEY) then
    return true
  end
  local holder = holder_of((key_field(body, lane.name)))
  if not holder then
    take_key(body, lane.name)
  end
  return not holder or holder == id_of(body)
end

local function begin_anew(field, body, lane)
  local at = head_end(body) + 1
  push_two(put_job, field, string.sub(body, 1, 12) .. now8 .. string.char(string.byte(body, 21) - FINISHED)
    .. string.sub(body, 22, at - 1) .. tail_of(body))
  push_two(put_state, field, FRESH .. string.sub(body, at + 23, at + 26) .. string.sub(body, at + 1, at + 8) .. now8
    .. string.sub(body, at + 27, at + 46))
  lane.F = lane.F - 1
  stand(field, lane, string.char(9 - string.byte(body, 22)), now8, false)
  mark(lane.queue)
end

local on, last = seek(function(field, body)
  if #ids + #held == most then
    more = true
    return true
  end
  last_field = field
  local lane = lane_of(string.sub(body, 1, 4))
  if has_key(body, lane) then
    begin_anew(field, body, lane)
    push(ids, id_of(body))
    push(fields, field)
  else
    push(held, id_of(body))
  end
end)

write_ledger()
each_part('ZREM', dead_key, fields)
each_part('ZREM', dead_at_key, fields)
count_lanes()
ring()
return { on, last and 1 or 0, ids, held, last_field, more and 1 or 0 }
