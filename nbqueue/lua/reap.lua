-- Takes entries from a worker that no longer renews them, if they are lapsed still. Returns how many.
local idle_ms, items = unpack(cmsgpack.unpack(ARGV[1]))
local taken = 0
for _, item in ipairs(items) do
  local queue, lane, entry = unpack(item)
  local stream = key(queue, lane)
  local pending = redis.call("XPENDING", stream, GROUP, entry, entry, 1)[1]
  if pending and pending[3] >= idle_ms and put_back(queue, stream, entry, "worker") then taken = taken + 1 end
end
return taken
