-- Drops delayed messages that were sent on, but for what has taken their place meanwhile.
local lent_until, items = unpack(cmsgpack.unpack(ARGV[1]))
for _, item in ipairs(items) do
  local queue, member = unpack(item)
  if tonumber(redis.call("ZSCORE", key(queue, "delayed"), member) or -1) == lent_until then
    redis.call("ZREM", key(queue, "delayed"), member)
    redis.call("HDEL", key(queue, "bodies"), member)
  end
end
return 1
