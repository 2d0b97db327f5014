-- Ends tasks, or marks them as started, if their claims still hold: the record is written, the session told, what
-- follows put off, or kept until it is sent. Whoever asked then sends that and acknowledges; if it can't, the message
-- comes back, and what is to be sent is here. Of a call that is the last of its join that is also what follows the join:
-- which one was the last is decided once, here. Returns for each 0 (its claim held no more), 1, or 2 for such a last one.
local records, ttl_ms, failed_ttl_ms, maxlen, session_ttl_ms, items, outbox = unpack(cmsgpack.unpack(ARGV[1]))
local held, sessions, groups = {}, {}, {}
for n, item in ipairs(items) do
  local ends, queue, id, token, record, session, group, state, dead, level, message, kept, kept_last, arrival = unpack(item)
  local claims = key(queue, "claims")
  local ours = redis.call("HGET", claims, id) == token
  if ours and ends == 1 then
    local fields = message > 0 and {h = ARGV[message], b = ARGV[message + 1], p = level}
    if fields and dead == 1 then bury(queue, id, fields, record) end
    if fields and dead ~= 1 then keep_failed(queue, id, fields, failed_ttl_ms) end
    redis.call("HDEL", claims, id)
    -- A repeat, or what was refused, has no state: the task of its id may live, also in another queue, and be revoked.
    if state ~= "" then redis.call("DEL", "nbq:attempts:" .. id) end
    if state ~= "RETRY" and state ~= "" then
      if redis.call("HLEN", "nbq:revoked") > 0 then redis.call("HDEL", "nbq:revoked", id) end
      count_members(groups, group, state, 1)
    end
  end
  if ours and record ~= "" then
    redis.call("SET", records .. id, record, "PX", kept_ms(state, ttl_ms, failed_ttl_ms))
    if ends == 1 and group == "" then redis.call("PUBLISH", records .. id, record) end
    collect(sessions, session, record)
  end
  held[n] = ours and 1 or 0
  if ours and ends == 1 then
    if arrival[1] and arrive(records, ttl_ms, arrival, id) then
      held[n], kept = 2, kept_last
    end
    if kept > 0 then redis.call("SET", "nbq:outbox:" .. id, ARGV[kept], "PX", math.max(ttl_ms, LIVE_MS)) end
  end
end
-- `needs` is what is said above of the item it follows: 2 for what follows a join.
for _, message in ipairs(outbox) do
  local follows, needs, queue, id, header, due_ms, level, body, attempt, deaths, losses = unpack(message)
  if held[follows] >= needs then
    note_queue(queue, level)
    if due_ms > 0 then enqueue(queue, id, header, ARGV[body], due_ms, level, {attempt, deaths, losses}) end
  end
end
tell(sessions, maxlen, session_ttl_ms)
write_counts(groups, ttl_ms)
return held
