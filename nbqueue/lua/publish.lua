-- Puts messages on their queues, each with its pending record. Same id and nonce: a repeat, reported as sent.
-- Returns one number a message: 1 sent, 2 a repeat, -1 the id belongs to a live task.
local records, ttl_ms, wake, messages = unpack(cmsgpack.unpack(ARGV[1]))
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
    if verdict == 1 then redis.call("SET", records .. id, record, "PX", ttl_ms) end
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
rouse(wake)
return status
