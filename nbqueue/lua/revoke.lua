-- Revokes tasks. One that nobody holds ends here and now; one that a worker holds is marked, and its worker
-- told. Returns for each "revoked", "held", "ended" or "unknown".
local records, ttl_ms, maxlen, session_ttl_ms, items = unpack(cmsgpack.unpack(ARGV[1]))
local said, sessions, groups = {}, {}, {}
for n, item in ipairs(items) do
  local queue, id, record, session, group, mark = unpack(item)
  local old = redis.call("GET", records .. id)
  local state = old and string.match(old, '"status":"(%u+)"')
  if state == "SUCCESS" or state == "FAILURE" or state == "REVOKED" or state == "REJECTED" or state == "IGNORED" then
    said[n] = "ended"
  elseif queue == "" then
    said[n] = "unknown" -- no mark: nothing would ever take it away
  elseif redis.call("HEXISTS", key(queue, "claims"), id) == 1 then
    if mark ~= "" then -- an empty one asks only for what nobody holds
      redis.call("HSET", "nbq:revoked", id, mark)
    end
    said[n] = "held"
  else
    redis.call("ZREM", key(queue, "delayed"), id)
    redis.call("HDEL", key(queue, "bodies"), id)
    redis.call("HDEL", "nbq:revoked", id) -- from when somebody held it
    redis.call("SET", records .. id, record, "PX", ttl_ms)
    redis.call("PUBLISH", records .. id, record)
    collect(sessions, session, record)
    count_members(groups, group, "REVOKED", 1)
    said[n] = "revoked"
  end
end
tell(sessions, maxlen, session_ttl_ms)
write_counts(groups, ttl_ms)
return said
