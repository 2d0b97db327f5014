-- Ends tasks, or marks them as started, in one step: the entry is acknowledged only if it is still ours, and
-- only then the record is written, its session told and its outbox sent. A task in state RETRY has not ended: only
-- its entry has, and its outbox holds the next. The message of a task that failed or is given up is kept. Returns 1 for each that held, else 0.
local records, ttl_ms, maxlen, session_ttl_ms, items, outbox = unpack(cmsgpack.unpack(ARGV[1]))
local held, sessions, groups = {}, {}, {}
for n, item in ipairs(items) do
  local ends, queue, lane, entry, id, record, session, group, state, dead = unpack(item)
  local stream, claims = key(queue, lane), key(queue, "claims")
  local ours
  if ends == 1 then
    ours = redis.call("XACK", stream, GROUP, entry) == 1
    if ours then
      if dead == 1 or state == "FAILURE" then
        local found = redis.call("XRANGE", stream, entry, entry)[1]
        if found and dead == 1 then bury(queue, id, fields_of(found[2]), record) end
        if found and dead ~= 1 then keep_failed(queue, id, fields_of(found[2]), ttl_ms) end
      end
      redis.call("XDEL", stream, entry)
      redis.call("HDEL", claims, id)
      -- A repeat, or what was refused, has no state: the task of its id may live, and be revoked.
      if state ~= "RETRY" and state ~= "" then
        if redis.call("HLEN", "nbq:revoked") > 0 then redis.call("HDEL", "nbq:revoked", id) end
        count_member(groups, group, state)
      end
    end
  else
    ours = redis.call("HGET", claims, id) == place_of(stream, entry)
  end
  if ours and record ~= "" then
    if records ~= "" then
      redis.call("SET", records .. id, record, "PX", ttl_ms)
      if ends == 1 then redis.call("PUBLISH", records .. id, record) end
    end
    collect(sessions, session, record)
  end
  held[n] = ours and 1 or 0
end
-- Follow-ups, each with the number of the item it follows; an item that no longer held sends none.
for n, message in ipairs(outbox) do
  local follows, queue, id, header, due_ms, level, attempt, deaths, losses = unpack(message)
  if held[follows] == 1 then
    redis.call("SADD", "nbq:queues", queue)
    local counters = (attempt > 1 or deaths > 0 or losses > 0) and {attempt, deaths, losses} or nil
    enqueue(queue, id, header, ARGV[n + 1], due_ms, level, counters)
  end
end
tell(sessions, maxlen, session_ttl_ms)
write_counts(groups, ttl_ms)
return held
