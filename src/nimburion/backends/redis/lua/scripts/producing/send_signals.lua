-- send_signals: stores signals to jobs, and resumes durable runs that wait for them. backends/planning/runs.py decides the same in Python.
-- Keys: job
-- Arguments: ARGV[3...] id of the job, name, id of the signal and payload of each of up to 500 signals
-- Reply: one code per signal: SIGNAL_STORED, SIGNAL_EXISTS, SIGNAL_FULL, SIGNAL_UNKNOWN or SIGNAL_FINISHED
-- Atomic: one script. A full server rejects it before it begins. A settlement that suspends the job comes before it, or finds the signal.
-- Cost: O(log n) per signal, for n signals and waiting jobs.
local codes, ids = {}, {}
for i = 3, #ARGV, 4 do
  push(ids, ARGV[i])
end
local fields, stored_fields = find_fields(ids), {}

local function send_signal(field, at)
  local body = field and redis.call('HGET', job_key, field)
  if not body then
    return SIGNAL_UNKNOWN
  end
  if has_flag(body, FLAG_FINISHED) then
    return SIGNAL_FINISHED
  end
  local code = add_signal(field, ARGV[at + 2], ARGV[at + 1], ARGV[at + 3])
  if code == SIGNAL_STORED then
    note_signal(field, ARGV[at + 1])
    stored_fields[field] = true
  end
  return code
end

for i, field in ipairs(fields) do
  codes[i] = send_signal(field, 4 * i - 1)
end
if next(stored_fields) then
  for field in pairs(stored_fields) do
    forget_taken_signals(field)
  end
  resolve_changes()
end
write_lane_counts()
notify_marked()
return table.concat(codes)
