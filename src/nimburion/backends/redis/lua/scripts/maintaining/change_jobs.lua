-- change_jobs: replays, makes due, cancels or deletes jobs, and writes a record in the same step.
-- Keys: job lease attempt_state record
-- Arguments: ARGV[3] action: replay, run_now, cancel or delete
--   ARGV[4] kind of the record; '': there is none, and [5] to [9] are ''
--   ARGV[5] id of the record, [6] version that it must have, [7] when it is due, or '', [8] seconds that each changed job adds, [9] body
--   ARGV[10] the codes of the states in which jobs are changed; the action can change jobs in each of them
--   ARGV[11...] up to 500 ids of jobs, each once
-- Reply: {{id, ...} changed, {id, ...} not changed because another job holds their unique key, the record; nil: it has another
--   version, and nothing was changed}
-- Atomic: one script.
-- Cost: O(log n) per job, for n waiting or finished jobs.
local FIRST_ID = 11
local action, kind, codes = ARGV[3], ARGV[4], ARGV[10]
local record_field = kind ~= '' and get_record_field(kind, ARGV[5])
local record = record_field and read_record(record_field)
if record_field and not (record and record.version == tonumber(ARGV[6])) then
  return { {}, {} }
end

-- Return the fields and the bodies of the jobs that are in one of the states.
local function read_jobs()
  local fields = {}
  for _, field in ipairs(#ARGV < FIRST_ID and {} or find_fields(ARGV, FIRST_ID)) do
    if field then
      push(fields, field)
    end
  end
  local bodies, leases = get_in_batches(job_key, fields), get_in_batches(lease_key, fields)
  local attempt_states, matching_fields, matching_bodies = get_in_batches(attempt_state_key, fields), {}, {}
  for i, field in ipairs(fields) do
    local code = get_state_code(bodies[i], leases[i], attempt_states[i])
    if string.find(codes, code, 1, true) then
      push(matching_fields, field)
      push(matching_bodies, bodies[i])
    end
  end
  return matching_fields, matching_bodies
end

local changed, held = {}, {}

-- Per action: change the jobs; add the ids of those that were changed to `changed`, and of those that could not be to `held`.
local ACTIONS = {
  replay = function(fields, bodies)
    local has_members = false
    for i, field in ipairs(fields) do
      local is_replayed = replay_job(field, bodies[i])
      push(is_replayed and changed or held, get_id(bodies[i]))
      if is_replayed and is_member(bodies[i]) then
        note_replay(field, bodies[i])
        has_members = true
      end
    end
    write_replays()
    if has_members then
      resolve_changes()
    end
  end,
  run_now = function(fields, bodies)
    for i, field in ipairs(fields) do
      if make_job_due(field, bodies[i]) then
        push(changed, get_id(bodies[i]))
      end
    end
    write_buffer()
  end,
  cancel = function(fields, bodies)
    for i, field in ipairs(fields) do
      cancel_job(field, bodies[i])
      push(changed, get_id(bodies[i]))
    end
    write_buffer()
    resolve_flows()
  end,
  delete = function(fields, bodies)
    local free_fields, free_bodies = {}, {}
    for i, body in ipairs(bodies) do
      local flow = is_member(body) and read_member(body).flow
      if not (flow and is_running(flow)) then
        push(free_fields, fields[i])
        push(free_bodies, body)
        push(changed, get_id(body))
      end
    end
    delete_jobs(free_fields, free_bodies)
  end,
}

ACTIONS[action](read_jobs())
write_lane_counts()
notify_marked()
if not record then
  return { changed, held }
end
record.changed, record.held = record.changed + #changed, record.held + #held
local due = tonumber(ARGV[7])
return { changed, held, write_version(record_field, record, due and due + math.floor(#changed * tonumber(ARGV[8]) * 1000000 + 0.5), ARGV[9]) }
