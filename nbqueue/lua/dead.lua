-- What is done with dead letters: `list` returns [id, record] of all, the newest last; `get` returns for each id
-- [queue, header, body, priority], or an empty array; `drop` how many it dropped; `requeue` for each "sent", "unknown", or
-- "live" where the id belongs to a live task. A requeued task begins anew, so what was known of its end goes.
local what, records, ttl_ms, wake, items = unpack(cmsgpack.unpack(ARGV[1]))

-- Returns queue, header, record and priority; nil for what isn't there, or isn't ours.
local function letter(id)
  local packed = redis.call("HGET", DEAD, id)
  local read, parts = pcall(cmsgpack.unpack, packed or "")
  if read and type(parts) == "table" then
    for n = 1, 3 do
      if type(parts[n]) ~= "string" then return nil end
    end
    return parts
  end
end

if what == "list" then
  local found = {}
  for _, id in ipairs(redis.call("ZRANGE", DEAD .. ":at", 0, -1)) do
    local known = letter(id)
    table.insert(found, {id, known and known[3] or ""})
  end
  return found
end

if what == "get" then
  local found = {}
  for n, id in ipairs(items) do
    local known = letter(id)
    found[n] = known and {known[1], known[2], redis.call("HGET", DEAD .. ":bodies", id) or "", level_of(known[4])} or {}
  end
  return found
end

if what == "drop" then
  local dropped = 0
  for _, id in ipairs(items) do dropped = dropped + forget_dead(id) end
  return dropped
end

local said = {}
for n, item in ipairs(items) do
  local queue, id, header, record, group, level = unpack(item)
  local old = redis.call("GET", records .. id)
  local state = old and string.match(old, '"status":"(%u+)"')
  if redis.call("HEXISTS", DEAD, id) == 0 then
    said[n] = "unknown"
  elseif is_live(state) then
    said[n] = "live"
  else
    if record ~= "" then
      redis.call("SET", records .. id, record, "PX", ttl_ms)
    else
      redis.call("DEL", records .. id) -- a member of a map has none before it ends
    end
    if group ~= "" and state then redis.call("HINCRBY", "nbq:progress:" .. group, state, -1) end
    redis.call("SADD", "nbq:queues", queue)
    enqueue(queue, id, header, ARGV[n + 1], 0, level)
    forget_dead(id)
    said[n] = "sent"
  end
end
rouse(wake)
return said
