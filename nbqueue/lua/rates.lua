-- Sets the tokens a second of a rate for all workers ("": as its task says; 0: no limit), and lets those go that may now.
local name, rate, elsewhere = unpack(cmsgpack.unpack(ARGV[1]))
local at_gates = gates()
if rate == "" then redis.call("HDEL", "nbq:rates", name) else redis.call("HSET", "nbq:rates", name, rate) end
local now = now_ms()
if at_gates.next_token(name) > now then redis.call("HSET", "nbq:rate:" .. name, "next", now) end
for _, queue in ipairs(redis.call("SMEMBERS", "nbq:gate:r:" .. name)) do at_gates.tick(queue, "r:" .. name, now, elsewhere == 1) end
return 1
