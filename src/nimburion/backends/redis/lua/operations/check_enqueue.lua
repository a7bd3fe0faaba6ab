-- Look: what an enqueue of more than one slice would meet, before its first slice is written.
-- Keys: job_seq job
-- Inputs: ARGV[3...] id, digest, unique key field or '' (name NUL key): three for each job
-- Result: {codes, [place, id of the job that holds the unique key, ...]}: c new, e there, x there with another body,
--   t its unique key is held
-- Atomic: one script that writes nothing; what changes between it and the slices is found by these
local total, ids = (#ARGV - 2) / 3, {}
for i = 1, total do
  ids[i] = ARGV[3 * i]
end
local codes, details = {}, {}
for first = 1, total, 1000 do
  local last = math.min(first + 999, total)
  local known = find_fields(ids, first, last)
  for i = first, last do
    local field, key = known[i - first + 1], ARGV[3 * i + 2]
    codes[i] = 'c'
    if field then
      codes[i] = string.sub(redis.call('HGET', job_key, field), 23, 38) == ARGV[3 * i + 1] and 'e' or 'x'
    elseif key ~= '' then
      local holder = find_key_holder(key)
      if holder then
        codes[i] = 't'
        push_pair(details, i, holder)
      end
    end
  end
end
return { table.concat(codes), details }
