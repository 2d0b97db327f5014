-- Ends tasks, or marks them as started, in one step: an entry is acknowledged only if it is still ours, and only then the
-- record is written, its session told and its outbox sent. A task in state RETRY has not ended: only its entry has, and
-- its outbox holds the next. The message of a task that failed or is given up is kept. What the hash of claims says of an id is
-- the proof: every script that takes an entry from its holder takes it out of there too.
-- Items come in groups that have all in common but entry, id and record. Returns nothing where all were ours and none the last of
-- its join; else [group, place] of each that was ours no more, and of each such last one.
local records, ttl_ms, failed_ttl_ms, maxlen, session_ttl_ms, items, outbox, arrivals = unpack(cmsgpack.unpack(ARGV[1]))
local lost, is_lost, sessions, groups = {}, {}, {}, {}

local function finish(queue, stream, state, group, dead, entries, ids, texts)
  if dead == 1 or state == "FAILURE" then
    for n, entry in ipairs(entries) do
      local found = redis.call("XRANGE", stream, entry, entry)[1]
      if found and dead == 1 then bury(queue, ids[n], fields_of(found[2]), texts[n]) end
      if found and dead ~= 1 then keep_failed(queue, ids[n], fields_of(found[2]), failed_ttl_ms) end
    end
  end
  redis.call("XACK", stream, GROUP, unpack(entries))
  redis.call("XDEL", stream, unpack(entries))
  redis.call("HDEL", key(queue, "claims"), unpack(ids))
  -- A repeat, or what was refused, has no state: the task of its id may live, and be revoked.
  if state ~= "RETRY" and state ~= "" then
    if redis.call("HLEN", "nbq:revoked") > 0 then redis.call("HDEL", "nbq:revoked", unpack(ids)) end
    count_members(groups, group, state, #ids)
  end
end

for number, item in ipairs(items) do
  local ends, queue, lane, session, group, state, dead, entries, ids, texts = unpack(item)
  local stream = key(queue, lane)
  local holders = redis.call("HMGET", key(queue, "claims"), unpack(ids))
  local our_entries, our_ids, our_texts, ended = {}, {}, {}, {}
  is_lost[number] = {}
  for n, id in ipairs(ids) do
    if holders[n] == place_in(lane, entries[n]) and not ended[id] then
      ended[id] = ends == 1
      local last = #our_ids + 1
      our_entries[last], our_ids[last], our_texts[last] = entries[n], id, texts[n]
    else
      lost[#lost + 1] = {number, n}
      is_lost[number][n] = true
    end
  end
  if ends == 1 and our_ids[1] then finish(queue, stream, state, group, dead, our_entries, our_ids, our_texts) end
  for n, text in ipairs(our_texts) do
    if text ~= "" then
      if records ~= "" then
        local name = records .. our_ids[n]
        redis.call("SET", name, text, "PX", kept_ms(state, ttl_ms, failed_ttl_ms))
        if ends == 1 and group == "" then redis.call("PUBLISH", name, text) end -- Celery's clients know no maps
      end
      collect(sessions, session, text)
    end
  end
end
-- The ends of calls of a canvas; what follows all members of a join is sent with the one that is the last.
local complete, last = {[0] = true}, {}
for n, arrival in ipairs(arrivals) do
  local number, place, what = unpack(arrival)
  if not is_lost[number][place] then
    complete[n] = arrive(records, ttl_ms, what, items[number][9][place])
    if complete[n] then last[#last + 1] = {number, place} end
  end
end
-- Follow-ups, each with the group and place of the item it follows; an item that was ours no more sends none.
for n, message in ipairs(outbox) do
  local number, place, queue, id, header, due_ms, level, attempt, deaths, losses, arrival = unpack(message)
  if not is_lost[number][place] and complete[arrival] then
    redis.call("SADD", "nbq:queues", queue)
    local counters = (attempt > 1 or deaths > 0 or losses > 0) and {attempt, deaths, losses} or nil
    enqueue(queue, id, header, ARGV[n + 1], due_ms, level, counters)
  end
end
tell(sessions, maxlen, session_ttl_ms)
write_counts(groups, ttl_ms)
return (lost[1] or last[1]) and {lost, last} or {}
