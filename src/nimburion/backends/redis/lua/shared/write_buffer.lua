-- Part of scripts that move jobs: what is to be written is collected first, and written in a few commands at the end.
-- Keys: job payload state ready due lease held cancel done dead dead_at
-- Inputs: fields (seqs as 8 bytes), leases and bodies as record_format.lua describes them
-- Result: end_lease, wait_again, finish; write_ledger() writes it all
-- Atomic: part of its script. Nothing is written before everything was decided, and no command of write_ledger can fail
--   by what it is given: so a script is applied whole, although the server takes nothing back.
local drop_payload, put_job, drop_state, put_state = {}, {}, {}, {}
local drop_ready, put_ready, drop_due, put_due = {}, {}, {}, {}
local drop_lease, drop_held, drop_cancel = {}, {}, {}
local put_done, put_dead, put_dead_at = {}, {}, {}

-- Take a job out of its session's hands.
local function end_lease(field, lease, lane)
  push(drop_lease, field)
  push(drop_held, string.sub(lease, 1, 4) .. field)
  lane.L = lane.L - 1
  if string.byte(lease, 41) == 49 then
    push(drop_cancel, field)
  end
end

-- Let a job stand in line, or aside until it is due.
local function stand(field, lane, rank, due8, failed)
  if micros8(due8, 1) <= now then
    push_two(put_ready, 0, lane.number .. rank .. due8 .. field)
    local letter = failed and 'R' or 'P'
    lane[letter] = lane[letter] + 1
  else
    local letter = failed and 'T' or 'S'
    push_two(put_due, 0, due8 .. field .. lane.number .. rank .. letter)
    lane[letter] = lane[letter] + 1
  end
end

-- Let a job that was leased wait again. `counts`: failures 4 | lost 2; `settled`: the token that settles it, or nil.
local function wait_again(field, lease, lane, counts, due8, settled)
  due8 = due8 or string.sub(lease, 55, 62)
  settled = settled or (#lease > 70 and string.sub(lease, 71, 90)) or NOTHING20
  push_two(put_state, field, counts .. string.sub(lease, 5, 8) .. string.sub(lease, 33, 40) .. due8 .. settled)
  stand(field, lane, string.sub(lease, 54, 54), due8, string.sub(counts, 1, 4) ~= '\0\0\0\0')
  mark(lane.queue)
end

-- End a job: write down how. `past`: due 8, started 8, counts 6, fence 4, settled 20 as one string; `reason`: may be nil.
local function finish(field, body, lane, letter, past, reason)
  local flags, ends = string.byte(body, 21), head_end(body)
  local dead = letter == 'F'
  local kept = ''
  if dead then
    kept = string.sub(body, ends + 1)
  elseif has(body, APART) then
    push(drop_payload, field)
  end
  push_two(put_job, field, string.sub(body, 1, 12) .. string.sub(past, 1, 8) .. string.char(flags + FINISHED)
    .. string.sub(body, 22, ends) .. letter .. string.sub(past, 9, 16) .. now8 .. string.sub(past, 17, 46)
    .. (reason and struct.pack('>I2', #reason) .. reason or NO_REASON) .. kept)
  lane[letter] = lane[letter] + 1
  if dead then
    push_two(put_dead, (struct.unpack('>I8', field)), field)
    push_two(put_dead_at, now, field)
  else
    push_two(put_done, now, field)
  end
  if bit.band(flags, KEY) ~= 0 and free_key(body, lane.name) then
    mark(lane.queue)
  end
end

-- The past of a job that ends while it is leased; `settled`: the token that ends it, or nil.
local function past_of(lease, counts, settled)
  settled = settled or (#lease > 70 and string.sub(lease, 71, 90)) or NOTHING20
  return string.sub(lease, 55, 62) .. string.sub(lease, 33, 40) .. counts .. string.sub(lease, 5, 8) .. settled
end

local function write_ledger()
  each_part('HDEL', lease_key, drop_lease)
  each_part('ZREM', held_key, drop_held)
  each_part('HDEL', cancel_key, drop_cancel)
  each_part('HDEL', payload_key, drop_payload)
  free_keys()
  each_part('HDEL', state_key, drop_state)
  each_part('ZREM', ready_key, drop_ready)
  each_part('ZREM', due_key, drop_due)
  each_part('HSET', job_key, put_job)
  each_part('HSET', state_key, put_state)
  each_part('ZADD', ready_key, put_ready)
  each_part('ZADD', due_key, put_due)
  each_part('ZADD', done_key, put_done)
  each_part('ZADD', dead_key, put_dead)
  each_part('ZADD', dead_at_key, put_dead_at)
end
