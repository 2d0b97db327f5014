-- Hides entries that the claimer can't judge for a while, so that they come back to somebody who can.
local delay_ms, items = unpack(cmsgpack.unpack(ARGV[1]))
local due = now_ms() + delay_ms
for _, item in ipairs(items) do
  local queue, lane, entry = unpack(item)
  local stream = key(queue, lane)
  hide(queue, stream, entry, due)
  count("put off")
end
return 1
