-- Look: what an enqueue of more than one slice would meet, before its first slice is written.
-- Keys: id job
-- Inputs: ARGV[3] MessagePack: [id, digest, unique key field or '' (name NUL key), ...]
-- Result: {letters (c, e, x, t), [place, id of the job that holds the unique key, ...]}; t also where only `lenient` could say
-- Locks: none
-- Atomic: one script that writes nothing; what changes between it and the slices is found by these
local asked = cmsgpack.unpack(ARGV[3])
local letters, told = {}, {}
for i = 1, #asked, 3 do
  local id, digest, field = asked[i], asked[i + 1], asked[i + 2]
  local place = (i + 2) / 3
  local known = redis.call('HGET', id_key, id)
  local letter = 'c'
  if known then
    letter = string.sub(redis.call('HGET', job_key, known), 23, 38) == digest and 'e' or 'x'
  elseif field ~= '' then
    local rival = holder_of(field)
    if rival then
      letter = 't'
      push_two(told, place, rival)
    end
  end
  letters[place] = letter
end
return { table.concat(letters), told }
