-- Shared part: the ids of jobs as they are stored. A UUID takes 17 bytes: 0, and its 16 bytes.
-- Provides: encode_id(text) -> the stored id; decode_id(id) -> its text
local HEX_4, HEX_8 = '([%da-f][%da-f][%da-f][%da-f])', '([%da-f][%da-f][%da-f][%da-f][%da-f][%da-f][%da-f][%da-f])'
local UUID = '^' .. HEX_8 .. '%-' .. HEX_4 .. '%-' .. HEX_4 .. '%-' .. HEX_4 .. '%-' .. HEX_4 .. HEX_8 .. '$'

local function encode_id(text)
  if #text ~= 36 then
    return text
  end
  local first, second, third, fourth, fifth, last = string.match(text, UUID)
  if not first then
    return text
  end
  return '\0' .. struct.pack(
    '>I4I2I2I2I2I4', tonumber(first, 16), tonumber(second, 16), tonumber(third, 16), tonumber(fourth, 16), tonumber(fifth, 16), tonumber(last, 16)
  )
end

local function decode_id(id)
  if string.byte(id) ~= 0 then
    return id
  end
  local hex = string.gsub(string.sub(id, 2), '.', function(byte)
    return string.format('%02x', string.byte(byte))
  end)
  return string.format(
    '%s-%s-%s-%s-%s', string.sub(hex, 1, 8), string.sub(hex, 9, 12), string.sub(hex, 13, 16), string.sub(hex, 17, 20), string.sub(hex, 21)
  )
end
