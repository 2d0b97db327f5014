-- Lends delayed messages that are due to whoever sends them on; if that isn't heard of again, they are due anew. Returns
-- until when they are lent, the milliseconds until the next is due (-1: none), and of each message queue, member, id,
-- header, body, attempt, child deaths, worker losses and priority.
local hold_ms, limit, queues = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local lent, next_due = {}, -1
for _, queue in ipairs(queues) do
  local delayed, bodies = key(queue, "delayed"), key(queue, "bodies")
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, limit)) do
    local read, parts = pcall(cmsgpack.unpack, redis.call("HGET", bodies, member) or "")
    if read and type(parts) == "table" and type(parts[1]) == "string" and type(parts[2]) == "string" then
      redis.call("ZADD", delayed, now + hold_ms, member)
      local id = type(parts[3]) == "string" and parts[3] or member
      table.insert(lent, {queue, member, id, parts[1], parts[2],
        whole(parts[4], 1), whole(parts[5], 0), whole(parts[6], 0), level_of(parts[7])})
    else
      redis.call("ZREM", delayed, member)
      redis.call("HDEL", bodies, member)
      count("refused:format")
    end
  end
  local first = redis.call("ZRANGE", delayed, 0, 0, "WITHSCORES")
  if first[2] then
    local wait = math.max(0, tonumber(first[2]) - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end
return {now + hold_ms, next_due, lent}
