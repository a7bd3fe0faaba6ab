-- Shared part: binary heaps in lists.
-- Provides: sift_down(heap, at, count, comes_before): moves the item at this place down until the ones below follow it
-- Cost: O(log n) for n items.
local function sift_down(heap, at, count, comes_before)
  local item = heap[at]
  while true do
    local child = 2 * at
    if child > count then
      break
    end
    if child < count and comes_before(heap[child + 1], heap[child]) then
      child = child + 1
    end
    if not comes_before(heap[child], item) then
      break
    end
    heap[at] = heap[child]
    at = child
  end
  heap[at] = item
end
