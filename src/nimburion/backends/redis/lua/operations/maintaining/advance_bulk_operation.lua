-- advance_bulk_operation: runs a claimed step. It changes the jobs and records the progress.
-- Keys: job bulk_operation_number
-- Arguments: ARGV[3] id of the operation, [4] fence of the claim, [5] where the next step continues, or '', [6] '1' if all jobs
--   were processed, [7] final state, or '', [8] error; '': as before, [9...] up to 500 ids of jobs
-- Reply: {'ok', record}, {'lost'} or {'missing'}
-- Atomic: one script. A repeat of the last step finds its claim ended and changes nothing.
-- Cost: O(log n) per job, for n waiting or finished jobs.
local FIRST_ID, MAX_CATCH_UP = 9, 1000000
local number = redis.call('HGET', bulk_operation_number_key, ARGV[3])
if not number then
  return { 'missing' }
end
local operation = read_bulk_operation(number)
if operation.fence ~= tonumber(ARGV[4]) then
  return { 'lost' }
end
if not operation.leased_until then
  return { 'ok', redis.call('HGET', bulk_operation_key, number) }
end

-- Return the fields and the bodies of the jobs that exist.
local function read_jobs()
  local fields = {}
  for _, field in ipairs(#ARGV < FIRST_ID and {} or find_fields(ARGV, FIRST_ID)) do
    if field then
      push(fields, field)
    end
  end
  return fields, get_in_batches(job_key, fields)
end

-- Per action: change the jobs; return how many were changed, and how many could not be.
local ACTIONS = {
  replay = function(fields, bodies)
    local replayed, held = 0, 0
    for i, field in ipairs(fields) do
      if has_flag(bodies[i], FLAG_FINISHED) and read_job_end(bodies[i]).code == FAILED then
        if replay_job(field, bodies[i]) then
          replayed = replayed + 1
        else
          held = held + 1
        end
      end
    end
    write_replays()
    return replayed, held
  end,
  run_now = function(fields, bodies)
    local changed = 0
    for i, field in ipairs(fields) do
      if make_job_due(field, bodies[i]) then
        changed = changed + 1
      end
    end
    write_buffer()
    return changed, 0
  end,
  cancel = function(fields, bodies)
    local cancelled = 0
    for i, field in ipairs(fields) do
      if cancel_job(field, bodies[i]) ~= 'finished' then
        cancelled = cancelled + 1
      end
    end
    write_buffer()
    return cancelled, 0
  end,
  delete = function(fields, bodies)
    local finished_fields, finished_bodies = {}, {}
    for i, field in ipairs(fields) do
      if has_flag(bodies[i], FLAG_FINISHED) then
        push(finished_fields, field)
        push(finished_bodies, bodies[i])
      end
    end
    delete_jobs(finished_fields, finished_bodies)
    return #finished_fields, 0
  end,
}

local request = cjson.decode(operation.body)
local done, failed = ACTIONS[request.action](read_jobs())
write_lane_counts()
notify_marked()
local rate = tonumber(request.rate)
operation.done, operation.failed = operation.done + done, operation.failed + failed
operation.skipped = operation.skipped + #ARGV - FIRST_ID + 1 - done - failed
operation.due = math.max(operation.due, now - MAX_CATCH_UP) + (rate and math.floor(done * 1000000 / rate + 0.5) or 0)
operation.cursor = ARGV[5] ~= '' and ARGV[5] or nil
operation.exhausted, operation.leased_until = ARGV[6] == '1', nil
if ARGV[7] ~= '' then
  operation.state, operation.ended_at = ARGV[7], now
end
if ARGV[8] ~= '' then
  operation.error = ARGV[8]
end
return { 'ok', write_bulk_operation(number, operation) }
