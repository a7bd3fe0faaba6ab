-- Shared part: the backend's time, and the encoding of times.
-- Arguments: ARGV[1] microseconds since 1970 and ARGV[2] microseconds since boot, from the clock of a test; both '' otherwise
-- Provides: now and alive_now in microseconds (for due times, and for the expiry of sessions), now8, encode_time, decode_time
-- Atomic: the server's time does not change while a script runs, so everything in a script happens at one time.
--
-- An encoded time has 8 bytes: big-endian with the sign bit inverted. The byte order is the order of the times.
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
