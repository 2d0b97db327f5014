-- Lends delayed messages that are due to whoever sends them on; if that isn't heard of again, they are due anew. Returns
-- until when they are lent, the milliseconds until the next is due (-1: none), and of each message queue, member, id,
-- header, body, attempt, child deaths, worker losses and priority.
local hold_ms, limit, queues = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local lent, next_due = {}, -1
for _, queue in ipairs(queues) do
  local delayed, bodies = key(queue, "delayed"), key(queue, "bodies")
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, limit)) do
    if is_timer(member) then gates().tick(queue, string.sub(member, 2), now, true) end
  end
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, limit)) do
    local id, header, body, level, counters = opened(redis.call("HGET", bodies, member) or "", member)
    if is_timer(member) then
      id = nil -- more than can go at once waits at it
    elseif id then
      redis.call("ZADD", delayed, now + hold_ms, member)
      local c = counters or {1, 0, 0}
      table.insert(lent, {queue, member, id, header, body, c[1], c[2], c[3], level})
    else
      redis.call("ZREM", delayed, member)
      redis.call("HDEL", bodies, member)
      count("refused:format")
    end
  end
  next_due = sooner(queue, now, next_due)
end
return {now + hold_ms, next_due, lent}
