-- Shared part: functions for binary strings.
-- Provides: byte, sub, band, unpack_struct, pack_struct; range_end(number): `number` has 4 bytes; pack_number(number, what)
-- A local is faster than a field of a global.
local byte, sub, band, unpack_struct, pack_struct = string.byte, string.sub, bit.band, struct.unpack, struct.pack

-- Encode the number of a lane or a session in 4 bytes. `range_end` needs the one after it. The error becomes `BackendFull`
-- (`_USED_UP` in `errors.py`).
local function pack_number(number, what)
  if number >= 4294967295 then
    error('all 4,294,967,294 numbers of ' .. what .. ' are used')
  end
  return pack_struct('>I4', number)
end

-- Return the end of the range of members that begin with these 4 bytes, for ZRANGEBYLEX.
local function range_end(number)
  return '(' .. pack_struct('>I4', (unpack_struct('>I4', number)) + 1)
end
