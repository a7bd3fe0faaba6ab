-- Shared part of change_jobs and prune: deletes finished jobs.
-- Keys: job payload job_seq history progress result result_time finished dead_letter dead_letter_time pruned_blocks
-- Provides: delete_jobs(fields, bodies). A body may be false: its job is already deleted. The caller then calls write_lane_counts().
-- Cost: O(log n) per job, for n finished jobs.
--
-- count_pruned adds deleted jobs to a block of BLOCK seqs. When all jobs of the block are deleted, the block joins the run of
-- empty blocks beside it, so that a scan skips the whole run.
local function count_pruned(block, by)
  if redis.call('HINCRBY', pruned_blocks_key, block, by) < BLOCK then
    return
  end
  local first = redis.call('HGET', pruned_blocks_key, '<' .. block - 1) or block
  local last = redis.call('HGET', pruned_blocks_key, '>' .. block + 1) or block
  redis.call('HDEL', pruned_blocks_key, block, '<' .. block - 1, '>' .. block + 1)
  redis.call('HSET', pruned_blocks_key, '>' .. first, last, '<' .. last, first)
end

local function delete_jobs(fields, bodies)
  local ids, deleted = {}, {}
  for i, field in ipairs(fields) do
    local body = bodies[i]
    if body then
      local lane, code = get_lane(get_lane_number(body)), read_job_end(body).code
      lane[code] = lane[code] - 1
      push(ids, get_id(body))
      if is_member(body) then
        local member = read_member(body)
        remove_conditions(field, body, member)
        forget_ended(field, member)
      end
      local block = math.floor(((struct.unpack('>I8', field)) - 1) / BLOCK)
      deleted[block] = (deleted[block] or 0) + 1
    end
  end
  call_in_batches('HDEL', job_seq_key, ids)
  for _, key in ipairs({ job_key, payload_key, history_key, progress_key, result_key }) do
    call_in_batches('HDEL', key, fields)
  end
  for _, key in ipairs({ result_time_key, finished_key, dead_letter_key, dead_letter_time_key }) do
    call_in_batches('ZREM', key, fields)
  end
  remove_runs(fields)
  for block, by in pairs(deleted) do
    count_pruned(block, by)
  end
end
