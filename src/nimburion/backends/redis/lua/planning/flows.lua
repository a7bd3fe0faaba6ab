-- Part of planning: what follows from the end of members of flows (backends/planning/flows.py): the counts, and the jobs that waited. The
-- same steps resume durable runs.
-- Keys: open_flow
-- Provides: note_new_flow(flow), note_growth(flow, count), note_closed(flow, is_late), note_condition(source, transition), note_replay(field, body),
--     note_signal(field, name)
--   resolve_changes(defers_uses): resumes the durable runs whose time has come, and applies what was noted, the ends of members in this
--     script, and what earlier scripts have left. It writes the buffer (see write_buffer.lua) after each level. The script calls it
--     after its own write_buffer.
--   read_flow(id) -> a flow with its new counts, or nil
--   get_transition(code), get_flow_transition(flow) -> the change that a new condition on an ended job or on a flow follows, or nil
-- Cost: O(log n) per condition, for n conditions and waiting jobs; at most MAX_RESOLVED conditions.
--
-- A change is {source, transition}. A flow is a table (see read_flow_record).
local MAX_RESOLVED = 250
local SUCCEEDED, FAILING, UNSUCCESSFUL, REOPENED = 's', 'g', 'u', 'r'
local changes, flows, changed_flows, touched_roots = {}, {}, {}, {}

local function note(source, transition)
  push(changes, { source = source, transition = transition })
end

local function read_flow(id)
  if id and flows[id] == nil then
    flows[id] = find_flow(id) or false
  end
  return id and flows[id] or nil
end

-- Read those of these flows that the script has not read.
local function read_flows(ids)
  local unread = {}
  for _, id in ipairs(ids) do
    if flows[id] == nil then
      flows[id] = false
      push(unread, id)
    end
  end
  for i, record in ipairs(get_in_batches(flow_key, unread)) do
    flows[unread[i]] = record and read_flow_record(unread[i], record)
  end
end

local function has_flow_failed(flow)
  return flow.failed + flow.cancelled > flow.max_failed
end

-- Return the outcome for which a group counts in the flow of which it is a member; nil: none yet.
local function get_outcome(flow)
  if has_flow_failed(flow) then
    return flow.failed > 0 and 'failed' or 'cancelled'
  end
  return flow.unfinished == 0 and 'completed' or nil
end

local change_flow

-- Note what changed in a flow, and count it in the flow of which it is a member.
local function note_flow_change(flow, had_ended, had_outcome)
  local has_ended, has_failed, transition = flow.unfinished == 0, has_flow_failed(flow), nil
  local outcome, had_failed = get_outcome(flow), had_outcome == 'failed' or had_outcome == 'cancelled'
  if has_ended and (not had_ended or has_failed ~= had_failed) then
    transition = has_failed and UNSUCCESSFUL or SUCCEEDED
  elseif has_failed and not had_failed then
    transition = FAILING
  elseif not has_ended and not has_failed and (had_ended or had_failed) then
    transition = REOPENED
  end
  if transition then
    note(pack_source(FLOW_SOURCE, flow.id), transition)
  end
  local parent = read_flow(flow.parent)
  if parent and (has_ended ~= had_ended or outcome ~= had_outcome) then
    local by = { unfinished = (had_ended and 1 or 0) - (has_ended and 1 or 0) }
    if had_outcome and had_outcome ~= outcome then
      by[had_outcome] = -1
    end
    if outcome and outcome ~= had_outcome then
      by[outcome] = 1
    end
    change_flow(parent, by)
  end
end

-- Add to the counts of a flow. Note its failure, its end, or that it runs again.
function change_flow(flow, by)
  local had_ended, had_outcome = flow.unfinished == 0, get_outcome(flow)
  for name, number in pairs(by) do
    flow[name] = flow[name] + number
  end
  changed_flows[flow.id] = flow
  note_flow_change(flow, had_ended, had_outcome)
end

local COUNTS = { [COMPLETED] = 'completed', [FAILED] = 'failed', [CANCELLED] = 'cancelled' }

-- Note that a member failed, if the failure of its flow cancels the others.
local function note_failure(root)
  if not root or not root.fails_fast or not has_flow_failed(root) or root.unfinished == 0 then
    return
  end
  local source = pack_source(FLOW_SOURCE, root.id)
  for _, change in ipairs(changes) do
    if change.source == source and change.transition == FAILING then
      return
    end
  end
  note(source, FAILING)
end

local function note_job(body, code)
  note(pack_source(JOB_SOURCE, get_id(body)), code == COMPLETED and SUCCEEDED or UNSUCCESSFUL)
end

-- Note that a member, which did not complete, has ended. `root`, `counted`: its flow, and the flow or the group that counts it.
local function note_failed(body, code, root, counted)
  note_job(body, code)
  local flow = read_flow(counted)
  if flow then
    change_flow(flow, { unfinished = -1, [COUNTS[code]] = 1 })
    note_failure(read_flow(root))
  end
end

-- Note that members have ended, as take_ended_members returns them. Those that completed one after the other are counted together.
local function note_ends(ended)
  local completed, ids = {}, {}

  local function count_completed()
    read_flows(ids)
    for _, id in ipairs(ids) do
      local flow = read_flow(id)
      if flow then
        change_flow(flow, { unfinished = -completed[id], completed = completed[id] })
      end
    end
    completed, ids = {}, {}
  end

  local is_any_awaited = #ended > 0 and any_job_sources()
  for _, members in ipairs(ended) do
    local fields, bodies, code = members.fields, members.bodies, members.code
    local root, counted = read_flow_names(bodies[1])
    if root then
      touched_roots[root] = true
    end
    keep_ended(fields, root, code)
    if code ~= COMPLETED then
      count_completed()
      for _, body in ipairs(bodies) do
        note_failed(body, code, root, counted)
      end
    else
      for _, body in ipairs(is_any_awaited and bodies or {}) do
        note_job(body, code)
      end
      if counted and not completed[counted] then
        push(ids, counted)
      end
      if counted then
        completed[counted] = (completed[counted] or 0) + members.count
      end
    end
  end
  count_completed()
end

-- Note that a job, which had ended with this code, waits again. `body`: before.
local function note_reopened(field, body, code)
  local member = read_member(body)
  note(pack_source(JOB_SOURCE, get_id(body)), REOPENED)
  forget_ended(field, member)
  local flow = read_flow(member.counted)
  if flow then
    change_flow(flow, { unfinished = 1, [COUNTS[code]] = -1 })
  end
end

-- Note that a dead letter waits again. What its flow cancelled because of `fail_fast` waits again too, unless the dead letter is a
-- callback. `body`: before.
local function note_replay(field, body)
  note_reopened(field, body, FAILED)
  local member = read_member(body)
  local root = member.counted and read_flow(member.flow)
  if root and root.fails_fast then
    note(pack_source(FLOW_SOURCE, root.id), REOPENED)
  end
end

-- Note that a flow was stored. It ends at once if it has no members.
local function note_new_flow(flow)
  if flow.unfinished == 0 then
    note_flow_change(flow, false, nil)
  end
end

-- Note that this number of members was added to a flow that has not ended.
local function note_growth(flow, count)
  if flow.grown8 ~= NO_TIME then
    flow.grown8 = now8
    redis.call('ZADD', open_flow_key, now, flow.id)
  end
  if count > 0 or flow.grown8 ~= NO_TIME then
    change_flow(flow, { unfinished = count, added = count })
  end
end

-- Note that a flow is closed, if it is open; `is_late`: because it got no members for long. The member that stands for those that may come
-- goes away. If it is late, it counts as cancelled, with as many others as the flow tolerates. No group is open.
local function note_closed(flow, is_late)
  if flow.grown8 == NO_TIME then
    return
  end
  flow.grown8 = NO_TIME
  redis.call('ZREM', open_flow_key, flow.id)
  if is_late then
    change_flow(flow, { unfinished = -1, added = flow.max_failed, cancelled = flow.max_failed + 1 })
    note_failure(flow)
  else
    change_flow(flow, { unfinished = -1, added = -1 })
  end
end

local function get_transition(code)
  return COUNTS[code] and (code == COMPLETED and SUCCEEDED or UNSUCCESSFUL) or nil
end

local function get_flow_transition(flow)
  if has_flow_failed(flow) then
    return flow.unfinished == 0 and UNSUCCESSFUL or FAILING
  end
  return flow.unfinished == 0 and SUCCEEDED or nil
end

-- Note that a new job has a condition on a source that ended before.
local function note_condition(source, transition)
  for _, change in ipairs(changes) do
    if change.source == source and change.transition == transition then
      return
    end
  end
  note(source, transition)
end

-- Note that a durable run was suspended, and waits for these sources.
local function note_suspended(field, sources)
  local unread
  for _, source in ipairs(sources) do
    local is_met
    if sub(source, 1, 1) == FLOW_SOURCE then
      local flow = read_flow(sub(source, 4))
      is_met = not flow or flow.unfinished == 0
    else
      unread = unread or read_unread_names(field)
      is_met = unread[sub(source, 12)]
    end
    if is_met then
      note(source, SUCCEEDED)
    end
  end
end

-- Note that a job got a signal.
local function note_signal(field, name)
  note(pack_source(SIGNAL_SOURCE, field .. name), SUCCEEDED)
end

-- Remove and return the first change of each source.
local function take_level()
  local level, later, seen = {}, {}, {}
  for _, change in ipairs(changes) do
    push(seen[change.source] and later or level, change)
    seen[change.source] = true
  end
  changes = later
  return level
end

local function join_changes(first, second)
  local joined = {}
  for _, list in ipairs({ first, second }) do
    for _, change in ipairs(list) do
      push(joined, change)
    end
  end
  return joined
end

-- Return whether a change meets a condition, or makes it impossible; nil: it is open again.
local function judge(on, transition)
  if transition == REOPENED then
    return nil
  end
  if on == ON_FINISHED or on == ON_ANY then
    return true
  end
  if on == FAILS_FAST then
    return transition == SUCCEEDED
  end
  return (transition == SUCCEEDED) == (on == ON_SUCCESS)
end

-- Apply the changes of a level to these conditions.
local function apply_level(waiters, level, defers_uses)
  local transitions, met, impossible, reopened = {}, {}, {}, {}
  for _, change in ipairs(level) do
    transitions[change.source] = change.transition
  end
  for _, waiter in ipairs(waiters) do
    local judged = judge(waiter.on, transitions[waiter.source])
    push(judged == nil and reopened or judged and met or impossible, waiter)
  end
  if #met > 0 then
    meet(met)
    if #impossible > 0 then -- a job that is resumed may be cancelled at once
      write_buffer(defers_uses)
      restart_buffer()
    end
  end
  if #impossible > 0 then
    note_ends(cancel(impossible))
  end
  for _, member in ipairs(#reopened > 0 and reopen(reopened) or {}) do
    note_reopened(unpack(member))
  end
  write_buffer(defers_uses)
  restart_buffer()
end

local function resolve_changes(defers_uses)
  write_waits()
  for _, run in ipairs(take_suspended_runs()) do
    note_suspended(run.field, run.sources)
  end
  note_ends(take_ended_members())
  restart_buffer()
  local due = list_due(MAX_RESOLVED)
  if #due > 0 then
    meet(due)
    write_buffer(defers_uses)
    restart_buffer()
  end
  local left = MAX_RESOLVED - #due
  changes = join_changes(take_changes(), changes)
  while #changes > 0 and left > 0 do
    local level = take_level()
    local waiters, awaited = list_waiters(level, left + 1)
    if #waiters > left then
      waiters[#waiters] = nil
      changes = join_changes(awaited, changes)
    end
    left = left - #waiters
    if #waiters > 0 then
      apply_level(waiters, level, defers_uses)
    end
  end
  write_kept()
  put_changes(changes)
  changes = {}
  save_flows(changed_flows)
  local roots, released = {}, {}
  for id in pairs(touched_roots) do
    push(roots, id)
  end
  read_flows(roots)
  for _, id in ipairs(roots) do
    local flow = read_flow(id)
    if not flow or flow.unfinished == 0 then
      push(released, id)
    end
  end
  release_flows(released)
end
