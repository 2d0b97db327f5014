-- Puts messages on their queues, each with its pending record. Same id and nonce: a repeat, reported as sent.
-- `group` is the map whose first `sent` members have been sent with these, or empty.
-- Returns one number a message: 1 sent, 2 a repeat, -1 the id belongs to a live task.
local records, ttl_ms, wake, messages, group, sent = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local known, status = {}, {}
for n, message in ipairs(messages) do
  local queue, id, header, due_ms, level, nonce, record = unpack(message)
  local body = ARGV[n + 1]
  local verdict = 1
  if record ~= "" then
    local old = redis.call("GET", records .. id)
    if old then
      if string.find(old, nonce, 1, true) then
        verdict = 2
      else
        local state = string.match(old, '"status":"(%u+)"')
        if is_live(state) then verdict = -1 end
      end
    end
    if verdict == 1 then
      redis.call("SET", records .. id, record, "PX", math.max(ttl_ms, LIVE_MS) + math.max(0, due_ms - now))
    end
  end
  if verdict == 1 then
    if not known[queue] then
      redis.call("SADD", "nbq:queues", queue)
      known[queue] = true
    end
    enqueue(queue, id, header, body, due_ms, level)
  end
  status[n] = verdict
end
if group ~= "" and sent > tonumber(redis.call("GET", "nbq:sent:" .. group) or "0") then
  redis.call("SET", "nbq:sent:" .. group, sent, "PX", LIVE_MS)
end
rouse(wake)
return status
