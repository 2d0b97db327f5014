-- Who leads: one beat at a time, for as long as its lease holds. Each that takes over gets a higher token, which its firings
-- name. Returns the asker's token (0: another leads), the server's time, who leads since when, how many stand by, and the cursor
-- of the last change of the schedule.
local me, name, lease_ms, resign = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local leader = redis.call("GET", "nbq:beat:leader")
local token, who, since, title
if leader then token, since, who, title = string.match(leader, "^(%d+) (%d+) (%S+) (.*)$") end

if resign == 1 then
  redis.call("HDEL", "nbq:beat:standby", me)
  if who == me then redis.call("DEL", "nbq:beat:leader") end
  return {0, now, "", 0, 0, "0-0"}
end
if not who then
  token, since, who, title = redis.call("INCR", "nbq:beat:token"), now, me, name
  redis.call("SET", "nbq:beat:leader", string.format("%d %d %s %s", token, since, me, name), "PX", lease_ms)
elseif who == me then
  redis.call("PEXPIRE", "nbq:beat:leader", lease_ms)
end
if who == me then
  redis.call("HDEL", "nbq:beat:standby", me)
else
  redis.call("HSET", "nbq:beat:standby", me, now)
end
local standby = redis.call("HGETALL", "nbq:beat:standby")
local waiting = 0
for n = 1, #standby, 2 do
  if now - tonumber(standby[n + 1]) > lease_ms then
    redis.call("HDEL", "nbq:beat:standby", standby[n])
  else
    waiting = waiting + 1
  end
end
local last = redis.call("XREVRANGE", "nbq:beat:changes", "+", "-", "COUNT", 1)[1]
return {who == me and tonumber(token) or 0, now, title, tonumber(since), waiting, last and last[1] or "0-0"}
