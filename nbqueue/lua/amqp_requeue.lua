-- Lets a task begin anew that failed or was given up: what was known of its end goes. Returns ["sent", its old record],
-- "unknown" (no message was kept), or "live" where the id belongs to a live task.
local records, ttl_ms, queue, id, record, group, level = unpack(cmsgpack.unpack(ARGV[1]))
local said, old = begin_anew(records, ttl_ms, id, record, group)
if said == "sent" then note_queue(queue, level) end
return {said, old or ""}
