-- Changes one entry of the schedule, if it and how it stands are still what was read (empty: nothing). An empty text removes
-- it, and keeps it for a while. Returns 1, or 0 where somebody else was faster.
local name, was, stood, text, stand, enabled, keep_ms = unpack(cmsgpack.unpack(ARGV[1]))
local call = ARGV[2]
if (redis.call("HGET", "nbq:beat:entries", name) or "") ~= was then return 0 end
if (redis.call("HGET", "nbq:beat:stands", name) or "") ~= stood then return 0 end
local deleted = "nbq:beat:deleted:" .. name
if text == "" then
  redis.call("HSET", deleted, "entry", was, "stand", stood, "call", redis.call("HGET", "nbq:beat:calls", name) or "")
  redis.call("PEXPIRE", deleted, keep_ms)
  redis.call("HDEL", "nbq:beat:entries", name)
  redis.call("HDEL", "nbq:beat:stands", name)
  redis.call("HDEL", "nbq:beat:calls", name)
else
  redis.call("HSET", "nbq:beat:entries", name, text)
  if call ~= "" then redis.call("HSET", "nbq:beat:calls", name, call) end
  if stand == "" then
    redis.call("HDEL", "nbq:beat:stands", name)
  else
    redis.call("HSET", "nbq:beat:stands", name, stand)
  end
  redis.call("DEL", deleted)
end
redis.call(enabled == 1 and "SADD" or "SREM", "nbq:beat:on", name)
redis.call("XADD", "nbq:beat:changes", "MAXLEN", "~", 100, "*", "n", name)
return 1
