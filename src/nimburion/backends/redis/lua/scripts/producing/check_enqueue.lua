-- check_enqueue: predicts the outcome of an enqueue of several batches, before the first batch is written.
-- Keys: job_seq job
-- Arguments: ARGV[3...] three per job: id, digest, and, with a unique key, '1' if the job may replace another, else '0', and the
--   field of the key (job name NUL key)
-- Reply: {codes, {index, id of the job that holds the unique key, ...}}; codes: CREATED for a new job, EXISTS, CONFLICT
--   (exists with another body), REPLACED (a repeat), TAKEN (the unique key) or REPLACEABLE (the same, and its holder waits)
-- Atomic: reads only. Each batch checks again, so it finds what changed in between.
-- Cost: O(1) per job.
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
    codes[i] = CREATED
    if field then
      local digest = string.sub(redis.call('HGET', job_key, field), JOB_DIGEST, JOB_DIGEST_END)
      codes[i] = digest == ARGV[3 * i + 1] and EXISTS or CONFLICT
    elseif key ~= '' then
      local replaced, digest
      if string.sub(key, 1, 1) == '1' then
        replaced, digest = find_replacement(ids[i])
      end
      local holder = replaced or find_key_holder(string.sub(key, 2))
      if replaced and digest ~= ARGV[3 * i + 1] then
        codes[i] = CONFLICT
      elseif holder then
        codes[i] = replaced and REPLACED or is_waiting(holder) and REPLACEABLE or TAKEN
        push_pair(details, i, holder)
      end
    end
  end
end
return { table.concat(codes), details }
