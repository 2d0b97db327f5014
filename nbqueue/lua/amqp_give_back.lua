-- Ends claims without an outcome, and charges what ended them. Returns 1 for each that held, else 0.
local ttl_ms, items = unpack(cmsgpack.unpack(ARGV[1]))
local back = {}
for n, item in ipairs(items) do
  local queue, id, token, charge = unpack(item)
  local claims = key(queue, "claims")
  back[n] = redis.call("HGET", claims, id) == token and 1 or 0
  if back[n] == 1 then
    redis.call("HDEL", claims, id)
    if charge ~= "none" then charge_with(id, charge, ttl_ms) end
  end
end
return back
