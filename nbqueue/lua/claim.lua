-- Claims up to `limit` entries for one consumer: first those that came back, then new ones by priority, queue by
-- queue, after moving delayed ones that are due. Returns: numbers of each entry (msgpack), their bytes as one string,
-- the milliseconds until the next delayed one is due (-1: none), and the priorities that each queue has ever seen.
local consumer, limit, records, queues = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local meta, data, next_due, levels = {}, {}, -1, {}

local function move_due(queue)
  local delayed = key(queue, "delayed")
  local ids = redis.call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, 100)
  for _, id in ipairs(ids) do release(queue, id) end
  local first = redis.call("ZRANGE", delayed, 0, 0, "WITHSCORES")
  if first[2] then
    local wait = math.max(0, tonumber(first[2]) - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

local function read(stream, want)
  local reply = redis.pcall("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", want, "STREAMS", stream, ">")
  if type(reply) == "table" and reply.err then
    if not string.find(reply.err, "NOGROUP", 1, true) then return redis.error_reply(reply.err) end
    -- Lost with the server's memory, or never made: from 0, so that nothing that waits is passed over.
    redis.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
    reply = redis.call("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", want, "STREAMS", stream, ">")
  end
  if not reply then return {} end
  return reply[1][2]
end

-- Where new and returned entries are, as the numbers that are returned: -1 for `r`, else the priority.
local function places(queue)
  local found = {}
  for _, level in ipairs(redis.call("SMEMBERS", key(queue, "levels"))) do table.insert(found, level_of(level)) end
  table.sort(found, function(a, b) return a > b end)
  table.insert(levels, {unpack(found)})
  table.insert(found, 1, -1)
  table.insert(found, 0)
  return found
end

for number, queue in ipairs(queues) do
  move_due(queue)
  for _, place in ipairs(places(queue)) do
    local stream = key(queue, place < 0 and "r" or lane_of(place))
    local want = limit - #meta
    if want > 0 then
      for _, item in ipairs(read(stream, want)) do
        local entry, f = item[1], fields_of(item[2] or {})
        local id = id_of(f, entry)
        local header, body = f.h or "", f.b or ""
        local verdict = admit(queue, stream, entry, id, string.match(header, '"nonce":"([^"]*)"') or "", records)
        if verdict then
          local record, mark = verdict[1], verdict[2]
          table.insert(meta, {number, place, entry, whole(f.a, 1), whole(f.c, 0),
            whole(f.w, 0), #id, #header, #body, #record, #mark})
          table.insert(data, id)
          table.insert(data, header)
          table.insert(data, body)
          table.insert(data, record)
          table.insert(data, mark)
        end
      end
    end
  end
end
return {cmsgpack.pack(meta), table.concat(data), next_due, levels}
