-- Shared part of enqueue and fire: stores new jobs, or says why it stores none.
-- Keys: counters lane_number lane_name job job_seq payload ready scheduled lane_counts
-- Provides: enqueue_jobs(names, positions, first) -> codes, holders
--   names: the full lane names
--   positions: 12 bytes per job: index in `names` 2 | rank 1 | mode 1 | value 8. Mode 'a': due at the time `value`. Mode 'd': due
--     `value` microseconds from now.
--   ARGV[first...]: the body of each job without its first 20 bytes (see record_format.lua), then the large payloads, in order
--   codes: one per job: c created, e exists, x conflict, t unique key taken, r refused because of another job of the call
--   holders: {index of the job: id of the job that holds its unique key}
-- Atomic: all outcomes are decided before anything is written. One job with code x or t refuses all jobs of the call.
-- Cost: O(log n) per job, for n waiting jobs.
local function get_new_id(new_body)
  return string.sub(new_body, 20, 19 + string.byte(new_body, 19))
end

local function get_position(positions, i)
  return string.sub(positions, i * 12 - 11, i * 12)
end

local function get_lane_job_name(full)
  return string.sub(full, string.find(full, '\0', 1, true) + 1)
end

-- Return the id of the job that holds the unique key of a new job: a stored job, or an earlier job of this call.
local function find_rival(body, name, taken)
  local field = get_key_field(body, name)
  local holder = taken[field] or find_key_holder(field)
  if not holder then
    taken[field] = get_id(body)
  end
  return holder
end

local function is_same_body(field, new_body)
  return string.sub(redis.call('HGET', job_key, field), 23, 38) == string.sub(new_body, 3, 18)
end

local function decide_outcomes(names, positions, first)
  local count = #positions / 12
  local ids, codes, holders, seen, taken, refused = {}, {}, {}, {}, {}, false
  for i = 1, count do
    ids[i] = get_new_id(ARGV[first + i - 1])
  end
  local known = find_fields(ids)
  for i = 1, count do
    local new_body, id, code = ARGV[first + i - 1], ids[i], 'c'
    if known[i] then
      code = is_same_body(known[i], new_body) and 'e' or 'x'
    elseif seen[id] then
      code = string.sub(seen[id], 3, 18) == string.sub(new_body, 3, 18) and 'e' or 'x'
    elseif bit.band(string.byte(new_body), FLAG_UNIQUE_KEY) ~= 0 then
      local which = struct.unpack('>I2', positions, i * 12 - 11)
      holders[i] = find_rival(string.rep(' ', 20) .. new_body, get_lane_job_name(names[which]), taken)
      if holders[i] then
        code = bit.band(string.byte(new_body), FLAG_ACCEPT_EXISTING) ~= 0 and 'e' or 't'
      end
    end
    if code == 'c' then
      seen[id] = new_body
    end
    refused = refused or code == 'x' or code == 't'
    codes[i] = code
  end
  return codes, holders, refused
end

-- Return the numbers of lanes by full name. New lanes get the next numbers.
local function get_or_add_lanes(names)
  local numbers = redis.call('HMGET', lane_number_key, unpack(names))
  for i, number in ipairs(numbers) do
    if not number then
      number = struct.pack('>I4', redis.call('HINCRBY', counters_key, 'lane', 1))
      redis.call('HSET', lane_number_key, names[i], number)
      redis.call('HSET', lane_name_key, number, names[i])
      numbers[i] = number
    end
  end
  return numbers
end

-- Return what all jobs of one position have in common: `front`, the first 20 bytes of the body; lane and due time; the parts of
-- their members of `ready` or `scheduled`.
local function make_place(position, numbers)
  local which, value = struct.unpack('>I2', position), string.sub(position, 5)
  local due8 = value
  if string.byte(position, 4) == 100 then -- d
    local span = decode_time(value, 1)
    due8 = span > 0 and encode_time(now + span) or now8
  end
  local lane, rank = get_lane(numbers[which]), string.sub(position, 3, 3)
  local ready = decode_time(due8, 1) <= now
  return {
    front = numbers[which] .. now8 .. due8, lane = lane, ready = ready, due8 = due8,
    place = ready and numbers[which] .. rank .. due8 or numbers[which] .. rank .. 'S',
  }
end

local function enqueue_jobs(names, positions, first)
  local codes, holders, refused = decide_outcomes(names, positions, first)
  if refused then
    for i, code in ipairs(codes) do
      if code == 'c' or code == 'e' then
        codes[i], holders[i] = 'r', nil
      end
    end
    return codes, holders
  end
  local created = 0
  for _, code in ipairs(codes) do
    created = created + (code == 'c' and 1 or 0)
  end
  if created == 0 then
    return codes, holders
  end
  local numbers = get_or_add_lanes(names)
  local seq = redis.call('HINCRBY', counters_key, 'seq', created) - created
  local jobs, ids, ready, due, large_payloads, places = {}, {}, {}, {}, {}, {}
  local next_large_payload = first + #codes
  for i, code in ipairs(codes) do
    local new_body = ARGV[first + i - 1]
    local payload
    if bit.band(string.byte(new_body), FLAG_LARGE_PAYLOAD) ~= 0 then
      payload, next_large_payload = ARGV[next_large_payload], next_large_payload + 1
    end
    if code == 'c' then
      local position = get_position(positions, i)
      local add_waiting = places[position]
      if not add_waiting then
        add_waiting = make_place(position, numbers)
        places[position] = add_waiting
        mark_queue(add_waiting.lane.queue)
      end
      seq = seq + 1
      local field = struct.pack('>I8', seq)
      push_pair(jobs, field, add_waiting.front .. new_body)
      push_pair(ids, get_new_id(new_body), shorten_field(field))
      if add_waiting.ready then
        push_pair(ready, 0, add_waiting.place .. field)
        add_waiting.lane.P = add_waiting.lane.P + 1
      else
        push_pair(due, 0, add_waiting.due8 .. field .. add_waiting.place)
        add_waiting.lane.S = add_waiting.lane.S + 1
      end
      if payload then
        redis.call('HSET', payload_key, field, payload)
      end
      if bit.band(string.byte(new_body), FLAG_UNIQUE_KEY) ~= 0 then
        take_key(jobs[#jobs], add_waiting.lane.name)
      end
    end
  end
  redis.call('HSET', job_key, unpack(jobs))
  redis.call('HSET', job_seq_key, unpack(ids))
  if #ready > 0 then
    redis.call('ZADD', ready_key, unpack(ready))
  end
  if #due > 0 then
    redis.call('ZADD', scheduled_key, unpack(due))
  end
  return codes, holders
end
