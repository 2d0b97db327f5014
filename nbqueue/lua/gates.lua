-- Lets claimed tasks pass the gates that they have, or wait there. Returns 1 for each that may run, else 0: that is claimed no
-- more. Items say the name and own tokens a second of a rate ("" for none), and a lock ("" for none).
local items = unpack(cmsgpack.unpack(ARGV[1]))
local at_gates = gates()
local now, passed, waits = now_ms(), {}, {}
for n, item in ipairs(items) do
  local queue, lane, entry, id, name, own, lock = unpack(item)
  local stream = key(queue, lane)
  local gate = at_gates.gate_for(queue, id, place_in(lane, entry), name, own, lock, now)
  passed[n] = gate and 0 or 1
  local found = gate and redis.call("XRANGE", stream, entry, entry)[1]
  if found and redis.call("XACK", stream, GROUP, entry) == 1 then
    redis.call("XDEL", stream, entry)
    local f = fields_of(found[2])
    free(queue, stream, entry, id)
    local packed = cmsgpack.pack({f.h or "", f.b or "", id, whole(f.a, 1), whole(f.c, 0), whole(f.w, 0), level_of(f.p)})
    at_gates.wait_at(queue, gate, id .. " " .. place_of(stream, entry), packed, lane == "r")
    waits[queue .. "\0" .. gate] = {queue, gate}
  end
end
for _, at in pairs(waits) do at_gates.tick(at[1], at[2], now, false) end
return passed
