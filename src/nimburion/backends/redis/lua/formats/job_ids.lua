-- Shared part: the ids of jobs as they are stored. A UUID takes 17 bytes: 0, and its 16 bytes.
-- Provides: encode_id(text) -> the stored id; decode_id(id) -> its text
local UUID = '^(%x%x%x%x%x%x%x%x)%-(%x%x%x%x)%-(%x%x%x%x)%-(%x%x%x%x)%-(%x%x%x%x%x%x%x%x%x%x%x%x)$'

local function encode_id(text)
  if string.find(text, UUID) and text == string.lower(text) then
    return '\0' .. string.gsub(string.gsub(text, '%-', ''), '%x%x', function(hex)
      return string.char(tonumber(hex, 16))
    end)
  end
  return text
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
