-- Hides entries that the claimer can't judge for a while, so that they come back to somebody who can.
local delay_ms, items = unpack(cmsgpack.unpack(ARGV[1]))
local due = now_ms() + delay_ms
for _, item in ipairs(items) do
  local queue, lane, entry = unpack(item)
  local stream = key(queue, lane)
  local found = redis.call("XRANGE", stream, entry, entry)[1]
  if redis.call("XACK", stream, GROUP, entry) == 1 and found then
    local f = fields_of(found[2])
    local id = id_of(f, entry)
    redis.call("XDEL", stream, entry)
    if redis.call("HGET", key(queue, "claims"), id) == entry then redis.call("HDEL", key(queue, "claims"), id) end
    redis.call("HSET", key(queue, "bodies"), id, cmsgpack.pack({f.h or "", f.b or ""}))
    redis.call("ZADD", key(queue, "delayed"), due, id)
    count("put off")
  end
end
return 1
