-- Lets a task begin anew that failed or was given up: what was known of its end goes. Returns ["sent", its old record],
-- "unknown" (no message was kept), or "live" where the id belongs to a live task.
local records, ttl_ms, queue, id, record, group, level = unpack(cmsgpack.unpack(ARGV[1]))
local old = redis.call("GET", records .. id)
local state = old and string.match(old, '"status":"(%u+)"')
if is_live(state) then return {"live", ""} end
if redis.call("HEXISTS", DEAD, id) == 0 and (redis.call("EXISTS", FAILED .. id) == 0 or state ~= "FAILURE") then
  return {"unknown", ""}
end
if record ~= "" then
  redis.call("SET", records .. id, record, "PX", math.max(ttl_ms, LIVE_MS))
else
  redis.call("DEL", records .. id) -- a member of a map has none before it ends
end
if group ~= "" and state then redis.call("HINCRBY", "nbq:progress:" .. group, state, -1) end
note_queue(queue, level)
return {"sent", old or ""}
