-- Makes known what is about to be sent over AMQP: pending records, and which queues and priorities are in use. What is
-- delayed waits here until it is due. Returns one number a message: 1 new, 2 a repeat, -1 the id belongs to a live task.
local records, ttl_ms, messages = unpack(cmsgpack.unpack(ARGV[1]))
local now, status = now_ms(), {}

for n, message in ipairs(messages) do
  local queue, id, header, due_ms, level, nonce, record, body = unpack(message)
  status[n] = record == "" and 1 or write_pending(records, ttl_ms, id, nonce, record, due_ms - now)
  if status[n] > 0 then note_queue(queue, level) end
  if status[n] == 1 and due_ms > 0 then enqueue(queue, id, header, ARGV[body], due_ms, level) end
end
return status
