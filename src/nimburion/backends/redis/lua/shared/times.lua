-- Part of every script: the backend's time, and times as bytes.
-- Inputs: ARGV[1] '' or microseconds since 1970, ARGV[2] '' or microseconds since boot: a test's own clock
-- Result: now and alive_now (microseconds: for due times, and for the lives of sessions), time8, micros8
-- Atomic: TIME stands still while a script runs, so that all of it happens at one time
--
-- A time as bytes is eight of them, big-endian, the sign bit turned: as bytes they stand in the order of time.
local now, alive_now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
  alive_now = now
else
  now, alive_now = tonumber(ARGV[1]), tonumber(ARGV[2])
end

local function encode_time(micros)
  local bytes = struct.pack('>I8', micros)
  return string.char(string.byte(bytes) + 128) .. string.sub(bytes, 2)
end

local function decode_time(bytes, at)
  return (string.byte(bytes, at) - 128) * 72057594037927936 + (struct.unpack('>I7', bytes, at + 1))
end

local now8 = encode_time(now)
