-- Returns claimed entries to the head of their queues. Returns for each the counters it now carries, or an
-- empty array if it was no longer ours.
local items = unpack(cmsgpack.unpack(ARGV[1]))
local back = {}
for n, item in ipairs(items) do
  local queue, lane, entry, charge = unpack(item)
  back[n] = put_back(queue, key(queue, lane), entry, charge) or {}
end
return back
