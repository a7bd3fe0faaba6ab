-- Part of list, replay and delete: go through jobs and pick those that a filter means.
-- Keys: n job state lease dead done void
-- Inputs: ARGV[3] which to look at: all (by seq, newest first), dead (failed ones, likewise), done (completed and cancelled
--   ones, latest end first), given (ARGV[7]: fields, 8 bytes each); [4] the field to go on behind, or ''; [5] filter
--   (MessagePack): {letters, queue, name, reason}, false for what does not matter; [6] the most to pick
-- Result: seek(visit) -> the field to go on behind, and whether nothing is left behind it. It calls visit(field, body,
--   letter, lease or state if there is one) for each job that is meant; that may answer two truths: this is enough, and
--   this one leaves the place it was found in
-- Atomic: part of its script. It looks at 500 jobs or a little more, then the backend asks again. Seqs are dense, but for
--   what was forgotten: blocks of them where nothing is left are passed over.
-- The seqs below one, down to the first of a block.
local function fields_below(top)
  local block = math.floor((top - 2) / BLOCK)
  local first = redis.call('HGET', void_key, '<' .. block)
  if first then
    top = first * BLOCK + 1
    block = first - 1
  end
  local fields = {}
  for number = top - 1, math.max(0, block * BLOCK) + 1, -1 do
    push(fields, struct.pack('>I8', number))
  end
  return fields
end

-- The next that may be meant, and whether these are the last.
local places = {
  all = function(on)
    local top = tonumber(redis.call('HGET', n_key, 'seq') or 0) + 1
    if on ~= '' then
      top = math.min(top, (struct.unpack('>I8', on)))
    end
    local fields = fields_below(top)
    return fields, #fields == 0 or fields[#fields] == '\0\0\0\0\0\0\0\1'
  end,
  dead = function(on)
    local top = on == '' and '+inf' or string.format('(%.0f', (struct.unpack('>I8', on)))
    local fields = redis.call('ZREVRANGEBYSCORE', dead_key, top, '-inf', 'LIMIT', 0, BLOCK)
    return fields, #fields < BLOCK
  end,
  done = function(on)
    local rank = on ~= '' and redis.call('ZREVRANK', done_key, on)
    local first = rank and rank + 1 or 0
    local fields = redis.call('ZREVRANGE', done_key, first, first + BLOCK - 1)
    return fields, #fields < BLOCK
  end,
  given = function(on)
    local top, fields = on == '' and math.huge or (struct.unpack('>I8', on)), {}
    for at = 1, #ARGV[7], 8 do
      if (struct.unpack('>I8', ARGV[7], at)) < top then
        push(fields, string.sub(ARGV[7], at, at + 7))
      end
    end
    return fields, true
  end,
}

-- Where a job stands, and why it ended. `past`: its lease or state, if it is unfinished and was handed out.
local function standing_of(body, lease, state)
  if has(body, FINISHED) then
    local at = head_end(body) + 1
    return string.sub(body, at, at), (reason_of(body, at))
  end
  if lease then
    return 'L'
  end
  if state and string.sub(state, 1, 4) ~= '\0\0\0\0' then
    return 'R'
  end
  local due = state and micros8(state, 19) or micros8(body, 13)
  return due > now and 'S' or 'P'
end

local function is_of_lane(body, queue, name)
  local lane = lane_of(string.sub(body, 1, 4))
  return not (queue and lane.queue ~= queue) and not (name and lane.name ~= name)
end

local function seek(visit)
  local filter, next_fields = cmsgpack.unpack(ARGV[5]), places[ARGV[3]]
  local letters, queue, name, why = filter[1], filter[2], filter[3], filter[4]
  local on, last, looked = ARGV[4], false, 0
  for _ = 1, 8 do
    local fields
    fields, last = next_fields(on)
    local bodies, leases, states = gather(job_key, fields), gather(lease_key, fields), gather(state_key, fields)
    for i, field in ipairs(fields) do
      local body, enough, leaves = bodies[i], false, false
      if body then
        looked = looked + 1
        if is_of_lane(body, queue, name) then
          local letter, reason = standing_of(body, leases[i], states[i])
          if not (letters and not string.find(letters, letter, 1, true)) and not (why and reason ~= why) then
            enough, leaves = visit(field, body, letter, leases[i] or states[i])
          end
        end
      end
      if not leaves then
        on = field
      end
      if enough then
        return on, last and i == #fields
      end
    end
    if last or looked >= BLOCK / 2 then
      break
    end
  end
  return on, last
end
