-- Lets tasks that were claimed of queues elsewhere pass the gates that they have, or wait there: as `gates.lua`. Those that
-- wait are kept here; their claims end, and whoever asked acknowledges them.
local items = unpack(cmsgpack.unpack(ARGV[1]))
local at_gates = gates()
local now, passed, waits = now_ms(), {}, {}
for n, item in ipairs(items) do
  local queue, id, token, name, own, lock, level, attempt, deaths, losses = unpack(item)
  local gate = at_gates.gate_for(queue, id, token, name, own, lock, now)
  passed[n] = gate and 0 or 1
  if gate then
    local packed = cmsgpack.pack({ARGV[2 * n], ARGV[2 * n + 1], id, attempt, deaths, losses, level})
    at_gates.wait_at(queue, gate, id .. " " .. token, packed, false)
    if redis.call("HGET", key(queue, "claims"), id) == token then redis.call("HDEL", key(queue, "claims"), id) end
    waits[queue .. "\0" .. gate] = {queue, gate}
  end
end
for _, at in pairs(waits) do at_gates.tick(at[1], at[2], now, true) end
return passed
