-- Shared part: reads and writes binary records. Their layout:
-- Provides: constants, and functions that read fields of a record
--
-- `due 8` is a field of 8 bytes. `id 1 + n` is a length of 1 byte and then that many bytes. All numbers are big-endian.
-- A field of a hash is the job's seq as 8 bytes. Offsets count from 1.
--
-- job               lane 4 | created 8 | due 8 | flags 1 | priority 1 | digest 16 | id 1 + n
--                   | options 4 + n, with FLAG_OPTIONS
--                   | unique key 1 + n | span 8 (all ones: until the job ends); both with FLAG_UNIQUE_KEY
--                   The head ends here. A job without FLAG_FINISHED continues with its payload.
--                   With FLAG_LARGE_PAYLOAD it has the length of the payload 4 instead; the payload is in the hash payload.
--                   With FLAG_FINISHED it continues with:
--                   code 1 | started 8 | finished 8 | failures 4 | lost 2 | fence 4 | settled 20 | reason 2 + n (all ones: none)
--                   | the payload, or its length, of a failed job
-- attempt_state     failures 4 | lost 2 | fence 4 | started 8 | due 8 | settled 20; of a waiting job that was leased before
-- lease             session 4 | fence 4 | nonce 16 | number 8 | started 8 | cancel 1 ('1': cancel was requested)
--                   | failures 4 | lost 2 | index in the reply 2 | member of ready 21
--                   | settled 20, only if the job was settled before
-- ready             lane 4 | rank 1 | due 8 | seq 8; the rank is 9 - priority. The byte order is the order of the lane.
-- scheduled         due 8 | seq 8 | lane 4 | rank 1 | code 1 (S or T)
-- session_leases    session 4 | seq 8
-- session_state     session 4 | number of the last exchange 8 | ttl 8 | opened 8 | status 1 (a alive, l left, d dead) | closed 8
--                   | codes of the last settlements
-- history           per failed attempt: time 8 | length 4 | JSON
-- unique_key        expiry 8 (all ones: when the job ends) | id
-- pruned_blocks     Block b holds the seqs 500 b + 1 to 500 b + 500. b -> number of its deleted jobs, until all are deleted.
--                   Then <last -> first and >first -> last, for the first and last block of a run of empty blocks.
--
-- An id is text, or a UUID as NUL and its 16 bytes (see encoding.py). A time is microseconds since 1970 plus 2^63.
-- A token is fence 4 | nonce 16. `settled` is the token of the last settlement of the job, or zeros.
-- Codes of lane_counts: P ready, S scheduled, R ready after a failure, T scheduled after a failure, L leased, C completed,
-- F failed, X cancelled.
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

-- Return the offset of the unique key (of its length), which follows the id and the options.
local function find_key_offset(body)
  local at = 40 + string.byte(body, 39)
  if has_flag(body, FLAG_OPTIONS) then
    at = at + 4 + (struct.unpack('>I4', body, at))
  end
  return at
end

-- Return the offset of the last byte of the head: what follows it changes when the job finishes.
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

-- Return the reason of a finished job, or nil, and the offset of its last byte. `at`: the offset after the head.
local function get_reason(body, at)
  local size = struct.unpack('>I2', body, at + 47)
  if size == 65535 then
    return nil, at + 48
  end
  return string.sub(body, at + 49, at + 48 + size), at + 48 + size
end

-- Return the payload of a job, or its length if it is large; '' if the job has none any more.
local function get_tail(body)
  local at = find_head_end(body) + 1
  if not has_flag(body, FLAG_FINISHED) then
    return string.sub(body, at)
  end
  local _, ends = get_reason(body, at)
  return string.sub(body, ends + 1)
end

-- Return the end of the range of members that begin with these 4 bytes, for ZRANGEBYLEX.
local function range_end(number)
  return '(' .. struct.pack('>I4', (struct.unpack('>I4', number)) + 1)
end
