-- Puts messages on their queues, each with its pending record. Same id and nonce: a repeat, reported as sent. They come in
-- groups that have queue, due time and priority in common; nonces and records only where there are any.
-- `map` is the one whose first `sent` members have been sent with these, or empty.
-- Returns an empty array if all were sent, else for each message 1 sent, 2 a repeat, -1 the id belongs to a live task, -2 the
-- code that it names isn't kept any more.
local records, ttl_ms, wake, groups, map, sent = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local said, number, all_sent = {}, 0, true

for _, group in ipairs(groups) do
  local queue, due_ms, level, ids, headers, nonces, texts, codes = unpack(group)
  local stream = key(queue, "n")
  redis.call("SADD", "nbq:queues", queue)
  for n, id in ipairs(ids) do
    number = number + 1
    local verdict = 1
    if codes[n] and codes[n] ~= "" and redis.call("EXISTS", "nbq:group:code:" .. codes[n]) == 0 then
      verdict = -2
    elseif texts[n] and texts[n] ~= "" then
      verdict = write_pending(records, ttl_ms, id, nonces[n], texts[n], due_ms - now)
    end
    if verdict ~= 1 then
      all_sent = false
    elseif due_ms == 0 and level == 0 then
      redis.call("XADD", stream, "*", "i", id, "h", headers[n], "b", ARGV[number + 1])
    else
      enqueue(queue, id, headers[n], ARGV[number + 1], due_ms, level)
    end
    said[number] = verdict
  end
end
if map ~= "" and sent > tonumber(redis.call("GET", "nbq:sent:" .. map) or "0") then
  redis.call("SET", "nbq:sent:" .. map, sent, "PX", LIVE_MS)
end
rouse(wake)
return all_sent and {} or said
