-- Runs tasks again. `get` returns for each id the message that was kept when it failed or was given up, as
-- [queue, header, body, priority], or an empty array. `send` puts messages in their place: for each "sent", "unknown" (nothing
-- was kept) or "live" (the id belongs to a live task); it begins anew, so what was known of its end goes. `release` returns 1 for
-- each delayed message that it put on its queue.
local what, records, ttl_ms, wake, items = unpack(cmsgpack.unpack(ARGV[1]))

local said = {}
if what == "get" then
  for n, id in ipairs(items) do
    local dead, record = letter(id), redis.call("GET", records .. id)
    local failed = record and string.match(record, '"status":"(%u+)"') == "FAILURE" and redis.call("EXISTS", FAILED .. id) == 1
    if dead and not failed then
      said[n] = {dead[1], dead[2], redis.call("HGET", DEAD .. ":bodies", id) or "", level_of(dead[4])}
    else
      local kept = redis.call("HMGET", FAILED .. id, "q", "h", "b", "p")
      said[n] = kept[1] and {kept[1], kept[2] or "", kept[3] or "", level_of(kept[4])} or {}
    end
  end
  return said
end

if what == "release" then
  for n, item in ipairs(items) do said[n] = release(item[1], item[2]) and 1 or 0 end
  rouse(wake)
  return said
end

for n, item in ipairs(items) do
  local queue, id, header, record, group, level = unpack(item)
  said[n] = begin_anew(records, ttl_ms, id, record, group)
  if said[n] == "sent" then
    redis.call("SADD", "nbq:queues", queue)
    enqueue(queue, id, header, ARGV[n + 1], 0, level)
    forget_dead(id)
    redis.call("DEL", FAILED .. id)
  end
end
rouse(wake)
return said
