-- Shared part of list_audit and list_bulk_operations: reads a page of a hash whose fields are numbers without gaps.
-- Provides: read_numbered_page(key, newest, limit, before) -> {number to continue before, or '' if no records remain, {record, ...}}
--   with the records below the number `before` (nil: all), newest first
-- Cost: O(records of the page).
local function read_numbered_page(key, newest, limit, before)
  local oldest = newest - redis.call('HLEN', key) + 1
  local first = math.min(newest, (before or math.huge) - 1)
  local last, numbers = math.max(oldest, first - limit + 1), {}
  for number = first, last, -1 do
    push(numbers, number)
  end
  local has_more = #numbers > 0 and last > oldest
  return { has_more and tostring(last) or '', get_in_batches(key, numbers) }
end
