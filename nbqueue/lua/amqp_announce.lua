-- Makes known what is about to be sent over AMQP: pending records, and which queues and priorities are in use. What is
-- delayed waits here until it is due. Of members of a map it says how many have been sent, so that who waits knows when its
-- sender has gone. Returns one number a message: 1 new, 2 a repeat, -1 the id belongs to a live task.
local records, ttl_ms, messages, group, sent = unpack(cmsgpack.unpack(ARGV[1]))
local now, status = now_ms(), {}

for n, message in ipairs(messages) do
  local queue, id, header, due_ms, level, nonce, record, body = unpack(message)
  status[n] = record == "" and 1 or write_pending(records, ttl_ms, id, nonce, record, due_ms - now)
  if status[n] > 0 then note_queue(queue, level) end
  if status[n] == 1 and due_ms > 0 then enqueue(queue, id, header, ARGV[body], due_ms, level) end
end
if group ~= "" and sent >= tonumber(redis.call("GET", "nbq:sent:" .. group) or "0") then
  redis.call("SET", "nbq:sent:" .. group, sent, "PX", LIVE_MS)
end
return status
