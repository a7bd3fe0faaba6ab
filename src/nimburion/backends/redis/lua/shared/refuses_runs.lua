-- Shared part of the exchange of a worker that has settled no durable run. It lacks the parts for these: find_needed_script (see settle.lua)
-- makes sure that none of these functions has anything to do.
-- Provides: record_steps(), record_step(), ask_to_end(), suspend_run()
-- Cost: none.
local function record_steps()
  return {}, false
end

local function record_step()
  return false
end

local function ask_to_end()
  return false
end

local function suspend_run() end
