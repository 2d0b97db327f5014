-- Fires an entry: what it sends is queued, and how it stands is written, in one step, if the asker still leads (token 0: by hand)
-- and neither the entry nor how it stands has changed since it looked. Where queues are elsewhere, what is to be sent is kept
-- until it has been. Returns 1 fired, 0 the asker leads no more, -1 something has changed.
local token, name, was, stood, stand, elsewhere, records, ttl_ms, wake, messages = unpack(cmsgpack.unpack(ARGV[1]))
if token > 0 then
  local leads = string.match(redis.call("GET", "nbq:beat:leader") or "", "^(%d+) ")
  if tonumber(leads or "-1") ~= token then return 0 end
end
if (redis.call("HGET", "nbq:beat:entries", name) or "") ~= was then return -1 end
if (redis.call("HGET", "nbq:beat:stands", name) or "") ~= stood then return -1 end
redis.call("HSET", "nbq:beat:stands", name, stand)
for n, message in ipairs(messages) do
  local queue, id, header, level, nonce, record = unpack(message)
  if record == "" or write_pending(records, ttl_ms, id, nonce, record, 0) == 1 then
    if elsewhere == 1 then
      redis.call("HSET", "nbq:beat:outbox", id, cmsgpack.pack({queue, id, header, level, nonce, record}))
      redis.call("HSET", "nbq:beat:outbox:bodies", id, ARGV[n + 1])
    else
      redis.call("SADD", "nbq:queues", queue)
      enqueue(queue, id, header, ARGV[n + 1], 0, level)
    end
  end
end
if #messages > 0 and elsewhere ~= 1 then rouse(wake) end
-- by hand: whoever leads is to know of this run too
if token == 0 then redis.call("XADD", "nbq:beat:changes", "MAXLEN", "~", 100, "*", "n", name) end
return 1
