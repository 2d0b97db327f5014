-- Lets tasks begin anew that failed or were given up: what was known of their ends goes, with the messages that were kept,
-- and the new messages wait as delayed ones do that are due, for a worker to send them on. Returns for each "sent",
-- "unknown" (no message was kept), or "live" where the id belongs to a live task.
local records, ttl_ms, items = unpack(cmsgpack.unpack(ARGV[1]))
local now, said = now_ms(), {}
for n, item in ipairs(items) do
  local queue, id, header, record, group, level = unpack(item)
  said[n] = begin_anew(records, ttl_ms, id, record, group)
  if said[n] == "sent" then
    note_queue(queue, level)
    enqueue(queue, id, header, ARGV[n + 1], now, level)
    forget_dead(id)
    redis.call("DEL", FAILED .. id)
  end
end
return said
