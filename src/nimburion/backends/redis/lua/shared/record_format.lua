-- Part of scripts that read jobs: where things stand in the packed values.
-- Inputs: packed values
-- Result: functions that find their parts
--
-- All numbers are big-endian; a field of a hash is the job's seq as 8 bytes. Offsets count from 1.
--
-- job     lane 4 | created 8 | due 8 | flags 1 | priority 1 | digest 16 | id 1 + n
--         | options 4 + n, with FLAG_OPTIONS | unique key 1 + n, span 8 (all ones: none), with FLAG_UNIQUE_KEY
--         then, unfinished: the payload; or its length 4, with FLAG_LARGE_PAYLOAD (it then lies in the hash payload)
--         or, with FLAG_FINISHED: code 1 | started 8 | finished 8 | failures 4 | lost 2 | fence 4 | settled 20
--         | reason 2 + n (all ones: none) | and the payload as before, if it failed
-- attempt_state    failures 4 | lost 2 | fence 4 | started 8 | due 8 | settled 20: of a waiting job that was leased before
-- lease   session 4 | fence 4 | nonce 16 | number 8 | at 8 | cancel 1 | failures 4 | lost 2 | place 2 | member 21
--         | settled 20, if it was settled before
-- ready   lane 4 | rank 1 | due 8 | seq 8: a member of that zset stands in lane order; rank is 9 - priority
-- scheduled        due 8 | seq 8 | lane 4 | rank 1 | code 1 (S or T)
-- session_leases   session 4 | seq 8
-- session_state    number 4 | number 8 | ttl 8 | opened 8 | life 1 (a alive, l left, d dead) | died 8 | codes of the last results
-- pruned_blocks    for blocks of 500 seqs, the first one 0: block -> how many of its jobs are forgotten, until all are; then
--         <last -> first and >first -> last of the run of empty blocks that it belongs to
-- An id is text, or a UUID as NUL and its 16 bytes (see encoding.py).
-- A token is fence 4 | nonce 16; `settled` is the one that settled the job last, or zeros.
-- Codes of lane_counts: P ready, S set aside until due, R and T the same after a failure, L leased,
-- C completed, F failed, X cancelled.
local FLAG_OPTIONS, FLAG_UNIQUE_KEY, FLAG_LARGE_PAYLOAD, FLAG_FINISHED, FLAG_ACCEPT_EXISTING = 1, 2, 4, 8, 16
local NEVER = string.rep('\255', 8)
local NO_COUNTS = string.rep('\0', 6)
local NO_TOKEN = string.rep('\0', 20)
local NO_TIME = string.rep('\0', 8)
local NO_REASON = '\255\255'
local BLOCK = 500

local function has_flag(body, flag)
  return bit.band(string.byte(body, 21), flag) ~= 0
end

-- Where the unique key of a job begins (its length), behind the id and the options.
local function find_key_offset(body)
  local at = 40 + string.byte(body, 39)
  if has_flag(body, FLAG_OPTIONS) then
    at = at + 4 + (struct.unpack('>I4', body, at))
  end
  return at
end

-- The last byte before what changes when a job is finished.
local function find_head_end(body)
  if string.byte(body, 21) % 4 == 0 then
    return 39 + string.byte(body, 39)
  end
  local at = find_key_offset(body)
  if has_flag(body, FLAG_UNIQUE_KEY) then
    at = at + 9 + string.byte(body, at)
  end
  return at - 1
end

local function get_id(body)
  return string.sub(body, 40, 39 + string.byte(body, 39))
end

-- Why a finished job ended, or nil; and where that ends. `at`: the first byte behind its head.
local function get_reason(body, at)
  local size = struct.unpack('>I2', body, at + 47)
  if size == 65535 then
    return nil, at + 48
  end
  return string.sub(body, at + 49, at + 48 + size), at + 48 + size
end

-- The payload of a job, or its length where it lies apart; '' when it is gone.
local function get_tail(body)
  local at = find_head_end(body) + 1
  if not has_flag(body, FLAG_FINISHED) then
    return string.sub(body, at)
  end
  local _, ends = get_reason(body, at)
  return string.sub(body, ends + 1)
end

-- The end of a range of members that begin with these 4 bytes.
local function range_end(number)
  return '(' .. struct.pack('>I4', (struct.unpack('>I4', number)) + 1)
end
