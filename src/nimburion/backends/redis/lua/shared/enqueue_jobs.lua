-- Part of enqueue and fire: store new jobs, or say why not.
-- Keys: n lane lanes job id payload ready due count
-- Inputs: names: full lane names · metas: 12 bytes a job: which of them 2 | rank 1 | mode 1 | value 8; mode a: due at that
--   time, d: so many microseconds from now · ARGV[first...]: a body each without its first 20 bytes (see record_format.lua), then
--   the payloads that lie apart, in order
-- Result: store(names, metas, first) -> a letter each (c created, e exists, x conflict, t taken, r refused), and where a
--   unique key is held the id of its holder, by place
-- Atomic: part of its script: all is decided before anything is written, and one refused job refuses all
local function body_id(blob)
  return string.sub(blob, 20, 19 + string.byte(blob, 19))
end

local function meta_of(metas, i)
  return string.sub(metas, i * 12 - 11, i * 12)
end

local function name_of(full)
  return string.sub(full, string.find(full, '\0', 1, true) + 1)
end

-- Who holds the unique key of a new job: a kept one, or an earlier one of this call. The body is read as if it were whole.
local function rival_of(body, name, taken)
  local field = key_field(body, name)
  local rival = taken[field] or holder_of(field)
  if not rival then
    taken[field] = id_of(body)
  end
  return rival
end

local function same_body(field, blob)
  return string.sub(redis.call('HGET', job_key, field), 23, 38) == string.sub(blob, 3, 18)
end

local function decide(names, metas, first)
  local count = #metas / 12
  local ids, letters, rivals, seen, taken, refused = {}, {}, {}, {}, {}, false
  for i = 1, count do
    ids[i] = body_id(ARGV[first + i - 1])
  end
  local known = fields_of(ids)
  for i = 1, count do
    local blob, id, letter = ARGV[first + i - 1], ids[i], 'c'
    if known[i] then
      letter = same_body(known[i], blob) and 'e' or 'x'
    elseif seen[id] then
      letter = string.sub(seen[id], 3, 18) == string.sub(blob, 3, 18) and 'e' or 'x'
    elseif bit.band(string.byte(blob), KEY) ~= 0 then
      local which = struct.unpack('>I2', metas, i * 12 - 11)
      rivals[i] = rival_of(string.rep(' ', 20) .. blob, name_of(names[which]), taken)
      if rivals[i] then
        letter = bit.band(string.byte(blob), LENIENT) ~= 0 and 'e' or 't'
      end
    end
    if letter == 'c' then
      seen[id] = blob
    end
    refused = refused or letter == 'x' or letter == 't'
    letters[i] = letter
  end
  return letters, rivals, refused
end

-- The numbers of lanes by their full names; new ones get theirs.
local function number_lanes(names)
  local numbers = redis.call('HMGET', lane_key, unpack(names))
  for i, number in ipairs(numbers) do
    if not number then
      number = struct.pack('>I4', redis.call('HINCRBY', n_key, 'lane', 1))
      redis.call('HSET', lane_key, names[i], number)
      redis.call('HSET', lanes_key, number, names[i])
      numbers[i] = number
    end
  end
  return numbers
end

-- Where jobs of one meta stand: the first 20 bytes of their bodies, and their lane, rank and due time.
local function standing(meta, numbers)
  local which, value = struct.unpack('>I2', meta), string.sub(meta, 5)
  local due8 = value
  if string.byte(meta, 4) == 100 then -- d
    local span = micros8(value, 1)
    due8 = span > 0 and time8(now + span) or now8
  end
  local lane, rank = lane_of(numbers[which]), string.sub(meta, 3, 3)
  local ready = micros8(due8, 1) <= now
  return {
    front = numbers[which] .. now8 .. due8, lane = lane, ready = ready, due8 = due8,
    place = ready and numbers[which] .. rank .. due8 or numbers[which] .. rank .. 'S',
  }
end

local function store(names, metas, first)
  local letters, rivals, refused = decide(names, metas, first)
  if refused then
    for i, letter in ipairs(letters) do
      if letter == 'c' or letter == 'e' then
        letters[i], rivals[i] = 'r', nil
      end
    end
    return letters, rivals
  end
  local created = 0
  for _, letter in ipairs(letters) do
    created = created + (letter == 'c' and 1 or 0)
  end
  if created == 0 then
    return letters, rivals
  end
  local numbers = number_lanes(names)
  local seq = redis.call('HINCRBY', n_key, 'seq', created) - created
  local jobs, ids, ready, due, apart, stands = {}, {}, {}, {}, {}, {}
  local next_apart = first + #letters
  for i, letter in ipairs(letters) do
    local blob = ARGV[first + i - 1]
    local payload
    if bit.band(string.byte(blob), APART) ~= 0 then
      payload, next_apart = ARGV[next_apart], next_apart + 1
    end
    if letter == 'c' then
      local meta = meta_of(metas, i)
      local stand = stands[meta]
      if not stand then
        stand = standing(meta, numbers)
        stands[meta] = stand
        mark(stand.lane.queue)
      end
      seq = seq + 1
      local field = struct.pack('>I8', seq)
      push_two(jobs, field, stand.front .. blob)
      push_two(ids, body_id(blob), short(field))
      if stand.ready then
        push_two(ready, 0, stand.place .. field)
        stand.lane.P = stand.lane.P + 1
      else
        push_two(due, 0, stand.due8 .. field .. stand.place)
        stand.lane.S = stand.lane.S + 1
      end
      if payload then
        redis.call('HSET', payload_key, field, payload)
      end
      if bit.band(string.byte(blob), KEY) ~= 0 then
        take_key(jobs[#jobs], stand.lane.name)
      end
    end
  end
  redis.call('HSET', job_key, unpack(jobs))
  redis.call('HSET', id_key, unpack(ids))
  if #ready > 0 then
    redis.call('ZADD', ready_key, unpack(ready))
  end
  if #due > 0 then
    redis.call('ZADD', due_key, unpack(due))
  end
  return letters, rivals
end
