-- Claims up to `limit` entries for one consumer: first those that came back, then new ones by priority, queue by queue, after
-- moving delayed ones that are due. `given` are entries that a blocking read has claimed already, whose ids are still to be
-- claimed. Returns: the numbers of each entry and the sizes of its parts, the parts of all as one string, the milliseconds until
-- the next delayed one is due (-1: none), the priorities that each queue has ever seen, and for each given entry
-- what is known of it: an empty array if it may not run, else its record and its mark.
local consumer, limit, records, queues, given = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
local rows, data, next_due, levels, verdicts = {}, {}, -1, {}, {}

local function move_due(queue)
  local delayed = key(queue, "delayed")
  for _, id in ipairs(redis.call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, 100)) do release(queue, id) end
  next_due = sooner(queue, now, next_due)
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

local function claim(number, queue, place, stream, want)
  local read_now = read(stream, want)
  if #read_now == 0 then return end
  local entries, ids, headers, fields = {}, {}, {}, {}
  for n, item in ipairs(read_now) do
    local flat = item[2] or {}
    local f
    if flat[1] == "i" and flat[3] == "h" and flat[5] == "b" and not flat[7] then
      f = {i = flat[2], h = flat[4], b = flat[6]} -- as they are written
    else
      f = fields_of(flat)
    end
    entries[n], ids[n], headers[n], fields[n] = item[1], id_of(f, item[1]), f.h or "", f
  end
  local found, marks = admit(queue, stream, entries, ids, headers, records)
  for n, record in ipairs(found) do
    if record then
      local f, body = fields[n], fields[n].b or ""
      rows[#rows + 1] = struct.pack(">HhIIIHIIIII", number, place, whole(f.a, 1), whole(f.c, 0), whole(f.w, 0),
        #entries[n], #ids[n], #headers[n], #body, #record, #marks[n])
      local last = #data
      data[last + 1], data[last + 2], data[last + 3] = entries[n], ids[n], headers[n]
      data[last + 4], data[last + 5], data[last + 6] = body, record, marks[n]
    end
  end
end

for n, part in ipairs(given) do
  local queue, lane, entries, ids, headers = unpack(part)
  local found, marks = admit(queue, key(queue, lane), entries, ids, headers, records)
  verdicts[n] = {}
  for at, record in ipairs(found) do verdicts[n][at] = record and {record, marks[at]} or {} end
end
for number, queue in ipairs(queues) do
  move_due(queue)
  for _, place in ipairs(places(queue)) do
    local want = limit - #rows
    if want > 0 then claim(number, queue, place, key(queue, place < 0 and "r" or lane_of(place)), want) end
  end
end
return {table.concat(rows), table.concat(data), next_due, levels, verdicts}
