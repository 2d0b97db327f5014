-- Keeps messages for a while that can't be run now, and ends the claims on them, if any. What one is kept under has its
-- token too: a message that somebody else wrote must not take the place of a delayed task by having its id.
local items = unpack(cmsgpack.unpack(ARGV[1]))
for n, item in ipairs(items) do
  local queue, id, token, delay_ms, level, attempt, deaths, losses = unpack(item)
  local member = id .. " " .. token
  redis.call("HSET", key(queue, "bodies"), member,
    cmsgpack.pack({ARGV[2 * n], ARGV[2 * n + 1], id, attempt, deaths, losses, level}))
  redis.call("ZADD", key(queue, "delayed"), now_ms() + delay_ms, member)
  if redis.call("HGET", key(queue, "claims"), id) == token then redis.call("HDEL", key(queue, "claims"), id) end
end
return 1
