-- Shared part: functions for binary strings.
-- Provides: byte, sub, band, unpack_struct, pack_struct; range_end(number): `number` has 4 bytes
-- A local is faster than a field of a global.
local byte, sub, band, unpack_struct, pack_struct = string.byte, string.sub, bit.band, struct.unpack, struct.pack

-- Return the end of the range of members that begin with these 4 bytes, for ZRANGEBYLEX.
local function range_end(number)
  return '(' .. pack_struct('>I4', (unpack_struct('>I4', number)) + 1)
end
