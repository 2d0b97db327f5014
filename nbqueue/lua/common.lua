-- Shared by every script: names of keys, time, and what happens to an entry when it is claimed or returned.
-- Scripts take one argument, a msgpack array, and keep to the keys of one server.
local GROUP = "nbq"
local DEAD = "nbq:dead" -- a hash of letters by id; their bodies and the order in which they came are beside it
local DEAD_KEPT = 1000
local LIVE_MS = 30 * 86400000 -- what is known of a task that has not ended is kept so long
local FAILED = "nbq:failed:" -- before an id: the message of a task that failed

-- Lane 0 is `n`, the lanes of higher priorities are `1` to `9`, and what came back is in `r`, whatever its priority.
local function lane_of(level) return level > 0 and tostring(level) or "n" end

local function key(queue, what) return "nbq:{" .. queue .. "}:" .. what end

-- What the hash of claims holds of a claimed entry: streams number theirs by the millisecond, each for itself. With a value of
-- more than 64 bytes the server keeps a hash as a table; packed, it is searched from its beginning.
local PADDING = string.rep(" ", 64)
local function place_in(lane, entry) return lane .. ":" .. entry .. PADDING end
local function place_of(stream, entry) return place_in(string.match(stream, "[^:]+$"), entry) end

local function now_ms()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function fields_of(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- An id that isn't UTF-8 would come back changed from whoever reads it as text, and its claim never be found.
local function is_text(id)
  if not string.find(id, "[\128-\255]") then return true end
  id = string.gsub(id, "[\194-\223][\128-\191]", "x")
  id = string.gsub(id, "\224[\160-\191][\128-\191]", "x")
  id = string.gsub(id, "\237[\128-\159][\128-\191]", "x")
  id = string.gsub(id, "[\225-\236\238\239][\128-\191][\128-\191]", "x")
  id = string.gsub(id, "\240[\144-\191][\128-\191][\128-\191]", "x")
  id = string.gsub(id, "[\241-\243][\128-\191][\128-\191][\128-\191]", "x")
  id = string.gsub(id, "\244[\128-\143][\128-\191][\128-\191]", "x")
  return not string.find(id, "[\128-\255]")
end

-- A garbage entry may have no id, or none that is text; it still needs a place among the claims.
local function id_of(fields, entry)
  if fields.i and is_text(fields.i) then return fields.i end
  return "?" .. entry
end

-- Counters of an entry are signed by nobody: what isn't a short whole number counts as missing.
local function whole(text, otherwise)
  if type(text) == "number" then text = string.format("%d", text) end
  if type(text) == "string" and #text < 7 and string.find(text, "^%d+$") then return tonumber(text) end
  return otherwise
end

local function level_of(text) return math.min(9, whole(text, 0)) end

local function count(what) redis.call("HINCRBY", "nbq:counters", what, 1) end

local function free(queue, stream, entry, id)
  local claims = key(queue, "claims")
  if redis.call("HGET", claims, id) == place_of(stream, entry) then redis.call("HDEL", claims, id) end
end

-- Hides a claimed entry until `due`. What it is kept under has its entry too: a message that somebody else wrote
-- must not take the place of a delayed task by having its id.
local function hide(queue, stream, entry, due)
  local found = redis.call("XRANGE", stream, entry, entry)[1]
  if redis.call("XACK", stream, GROUP, entry) ~= 1 or not found then return end
  redis.call("XDEL", stream, entry)
  local f = fields_of(found[2])
  local id = id_of(f, entry)
  free(queue, stream, entry, id)
  local member = id .. " " .. place_of(stream, entry)
  redis.call("HSET", key(queue, "bodies"), member,
    cmsgpack.pack({f.h or "", f.b or "", id, f.a or "", f.c or "", f.w or "", f.p or ""}))
  redis.call("ZADD", key(queue, "delayed"), due, member)
end

-- Two live entries of one id: only the first claimed may run. A true copy (a publish sent twice, or replayed) is
-- dropped; one that differs may be the genuine one, as nothing is verified here, so it waits for the other's end.
-- Tells whether this one may run.
local function displace(queue, stream, entry, id)
  local claims, place = key(queue, "claims"), place_of(stream, entry)
  if redis.call("HSETNX", claims, id, place) == 1 then return true end
  local holder = redis.call("HGET", claims, id)
  if holder == place then return true end
  local lane, other = string.match(holder, "^(%w+):(%S+)")
  local theirs = lane and redis.call("XRANGE", key(queue, lane), other, other)[1]
  local mine = redis.call("XRANGE", stream, entry, entry)[1]
  if theirs and mine then
    local a, b = fields_of(theirs[2]), fields_of(mine[2])
    if a.h ~= b.h or a.b ~= b.b then
      hide(queue, stream, entry, now_ms() + 1000)
      return false
    end
  end
  if theirs or not mine then
    redis.call("XACK", stream, GROUP, entry)
    redis.call("XDEL", stream, entry)
    count("repeat")
    return false
  end
  redis.call("HSET", claims, id, place) -- the holder's entry is gone, by somebody's hand
  return true
end

-- Tells whether a record is what was written when this very message was sent: the usual case, which needs no second look.
local function is_own_pending(record, nonce)
  return nonce ~= "" and string.find(record, '"status":"PENDING"', 1, true) and string.find(record, nonce, 1, true)
end

-- Claims entries of one stream for their ids. `entries` and `ids` go together, at most 1000 of them, and so do what is returned:
-- false for each that may not run, else its record as far as it matters, and the mark of one that is to be revoked.
local function admit(queue, stream, entries, ids, headers, records)
  local claims, fresh, seen, may_run = key(queue, "claims"), {}, {}, {}
  local lane = string.match(stream, "[^:]+$")
  local holders = redis.call("HMGET", claims, unpack(ids))
  for n, id in ipairs(ids) do
    if not holders[n] and not seen[id] then
      fresh[#fresh + 1] = id
      fresh[#fresh + 1] = place_in(lane, entries[n])
      seen[id], may_run[n] = true, true
    end
  end
  if #fresh > 0 then redis.call("HSET", claims, unpack(fresh)) end
  for n, id in ipairs(ids) do
    if not may_run[n] then may_run[n] = displace(queue, stream, entries[n], id) end
  end
  local found, marks = {}, {}
  if records ~= "" then
    local keys = {}
    for n, id in ipairs(ids) do keys[n] = records .. id end
    found = redis.call("MGET", unpack(keys))
  end
  if redis.call("HLEN", "nbq:revoked") > 0 then marks = redis.call("HMGET", "nbq:revoked", unpack(ids)) end
  for n in ipairs(ids) do
    local record = found[n] or ""
    if record ~= "" and is_own_pending(record, string.match(headers[n], '"nonce":"([^"]*)"') or "") then record = "" end
    found[n] = may_run[n] and record
    marks[n] = marks[n] or ""
  end
  return found, marks
end

-- Puts an entry back at the head of its queue under a new entry id. That an entry never changes hands is
-- what makes its place among the claims the proof of ownership. Returns attempt, child deaths and worker losses.
local function put_back(queue, stream, entry, charge)
  local found = redis.call("XRANGE", stream, entry, entry)[1]
  if redis.call("XACK", stream, GROUP, entry) ~= 1 or not found then return nil end
  redis.call("XDEL", stream, entry)
  local f = fields_of(found[2])
  local id = id_of(f, entry)
  local attempt, deaths, losses = whole(f.a, 1), whole(f.c, 0), whole(f.w, 0)
  if charge ~= "none" then attempt = attempt + 1 end
  if charge == "child" then deaths = deaths + 1 end
  if charge == "worker" then losses = losses + 1 end
  free(queue, stream, entry, id)
  redis.call("XADD", key(queue, "r"), "*", "i", f.i or "", "h", f.h or "", "b", f.b or "",
    "a", attempt, "c", deaths, "w", losses, "p", level_of(f.p))
  return {attempt, deaths, losses}
end

-- One stream entry a session carries all its facts, as a JSON array.
local function tell(sessions, maxlen, ttl_ms)
  for session, facts in pairs(sessions) do
    local stream = "nbq:session:" .. session
    redis.call("XADD", stream, "MAXLEN", "~", maxlen, "*", "f", "[" .. table.concat(facts, ",") .. "]")
    redis.call("PEXPIRE", stream, ttl_ms)
  end
end

local function collect(sessions, session, fact)
  if session == "" then return end
  if not sessions[session] then sessions[session] = {} end
  table.insert(sessions[session], fact)
end

-- How many members of a map have ended, and how: read at constant cost.
local function count_members(groups, group, state, number)
  if group == "" then return end
  if not groups[group] then groups[group] = {} end
  groups[group][state] = (groups[group][state] or 0) + number
end

local function write_counts(groups, ttl_ms)
  for group, states in pairs(groups) do
    for state, n in pairs(states) do redis.call("HINCRBY", "nbq:progress:" .. group, state, n) end
    redis.call("PEXPIRE", "nbq:progress:" .. group, math.max(ttl_ms, LIVE_MS))
  end
end

-- Puts one message on its queue, now or when it is due. `level` is its priority; `counters` (attempt, child deaths,
-- worker losses) are of one that follows another. What has never run goes without.
local function enqueue(queue, id, header, body, due_ms, level, counters)
  local c = counters or {1, 0, 0}
  if due_ms > 0 then
    local parts = {header, body}
    if counters or level > 0 then parts = {header, body, id, c[1], c[2], c[3], level} end
    redis.call("HSET", key(queue, "bodies"), id, cmsgpack.pack(parts))
    redis.call("ZADD", key(queue, "delayed"), due_ms, id)
    return
  end
  if level > 0 then redis.call("SADD", key(queue, "levels"), level) end
  if counters or level > 0 then
    redis.call("XADD", key(queue, lane_of(level)), "*", "i", id, "h", header, "b", body,
      "a", c[1], "c", c[2], "w", c[3], "p", level)
  else
    redis.call("XADD", key(queue, "n"), "*", "i", id, "h", header, "b", body)
  end
end

local READY = {SUCCESS = true, FAILURE = true, REVOKED = true, REJECTED = true, IGNORED = true}

-- Tells whether a task of this state has yet to end; tasks have states of their own, too.
local function is_live(state)
  return state and state ~= "" and not READY[state]
end

-- Returns how long the record of a task in this state is kept.
local function kept_ms(state, ttl_ms, failed_ttl_ms)
  if is_live(state) then return math.max(ttl_ms, LIVE_MS) end
  return state == "FAILURE" and failed_ttl_ms or ttl_ms
end

local function state_of(record)
  return record and string.match(record, '"status":"([%w_-]+)"')
end

-- Notes a member once in a set, and what it adds to the members of its join; returns 1 the first time.
local function wait_for_more(members, set, member, more, keep_ms)
  local first = redis.call("SADD", set, member)
  redis.call("PEXPIRE", set, keep_ms)
  if first == 1 and more[1] then
    redis.call("RPUSH", members .. ":more", unpack(more))
    redis.call("PEXPIRE", members .. ":more", keep_ms)
  end
  return first
end

-- Notes that a call of a canvas has ended. Tells whether it was the last member of its join (-1: it is of none): a set, as a
-- count would go wrong when a call ends twice. A member's record stays until its join is complete, however long that takes.
-- `more` are ids of calls that join its members from now on.
local function arrive(records, ttl_ms, arrival, id)
  local graph, node, join, member, size, more, goes_on = unpack(arrival)
  local keep_ms = math.max(ttl_ms, LIVE_MS)
  local members = "nbq:join:" .. graph .. ":" .. join
  if goes_on == 1 then
    wait_for_more(members, members .. ":adders", member, more, keep_ms)
    return false
  end
  redis.call("SETBIT", "nbq:ended:" .. graph, node, 1)
  redis.call("PEXPIRE", "nbq:ended:" .. graph, keep_ms)
  if join < 0 then return false end
  local added = wait_for_more(members, members, member, more, keep_ms)
  if records ~= "" then redis.call("PEXPIRE", records .. id, keep_ms) end
  return added == 1 and redis.call("SCARD", members) == size + redis.call("LLEN", members .. ":more")
end

local function forget_dead(id)
  redis.call("ZREM", DEAD .. ":at", id)
  redis.call("HDEL", DEAD .. ":bodies", id)
  return redis.call("HDEL", DEAD, id)
end

-- Returns queue, header, record and priority of a dead letter; nil for what isn't there, or isn't ours.
local function letter(id)
  local packed = redis.call("HGET", DEAD, id)
  local read, parts = pcall(cmsgpack.unpack, packed or "")
  if not read or type(parts) ~= "table" then return nil end
  for n = 1, 3 do
    if type(parts[n]) ~= "string" then return nil end
  end
  return parts
end

-- Keeps the message of a task that was given up, and the record that says why; the oldest go when there are many. What was
-- kept of an earlier task of this id that failed goes: so where both are kept the one that failed is the newer.
local function bury(queue, id, fields, record)
  redis.call("DEL", FAILED .. id)
  redis.call("HSET", DEAD, id, cmsgpack.pack({queue, fields.h or "", record, level_of(fields.p)}))
  redis.call("HSET", DEAD .. ":bodies", id, fields.b or "")
  redis.call("ZADD", DEAD .. ":at", now_ms(), id)
  local surplus = redis.call("ZCARD", DEAD .. ":at") - DEAD_KEPT
  if surplus > 0 then
    for _, oldest in ipairs(redis.call("ZRANGE", DEAD .. ":at", 0, surplus - 1)) do
      forget_dead(oldest)
      count("dead letter dropped")
    end
  end
end

-- Keeps the message of a task that failed for as long as its record, so that it can be run again.
local function keep_failed(queue, id, fields, ttl_ms)
  local kept = FAILED .. id
  redis.call("HSET", kept, "q", queue, "h", fields.h or "", "b", fields.b or "", "p", level_of(fields.p))
  redis.call("PEXPIRE", kept, ttl_ms)
end

-- Returns id, header, body, priority and counters (nil: it has never run) of a delayed message; nil if it is garbage.
local function opened(packed, member)
  local read, parts = pcall(cmsgpack.unpack, packed)
  if not (read and type(parts) == "table" and type(parts[1]) == "string" and type(parts[2]) == "string") then return nil end
  if type(parts[3]) ~= "string" then return member, parts[1], parts[2], 0, nil end
  return parts[3], parts[1], parts[2], level_of(parts[7]), {whole(parts[4], 1), whole(parts[5], 0), whole(parts[6], 0)}
end

-- What follows is about gates, where tasks wait that were claimed and may not run yet: `r:NAME` for the next token of a rate,
-- `l:NAME` for a lock. A gate has a list of waiting messages in each queue, and a timer among that queue's delayed ones.
local function is_timer(member) return string.byte(member) == 1 end

-- Made only where a task has a gate: each run of a script makes the functions anew that stand outside.
local function gates()
  local LOCK_LOOK_MS = 2000 -- between two looks at a lock whose release nobody has told of: its holder was lost, or gave its task back
  local RESERVED_MS = 10000 -- whom a lock was promised has to come for it
  local LAPSED_MS = 60000 -- after its lease nobody comes back
  local BURST_MS = 100 -- so much of a rate may come at once
  local ENDED = {SUCCESS = 1, FAILURE = 1, REVOKED = 1, REJECTED = 1, IGNORED = 1}

  local function is_over(id)
    local record = redis.call("GET", "celery-task-meta-" .. id)
    local state = record and string.match(record, '"status":"(%u+)"')
    return (state and ENDED[state]) or redis.call("HEXISTS", "nbq:revoked", id) == 1
  end

  -- The tokens a second of a rate: as was told while workers run, or else as the task says. 0: no limit.
  local function per_second(name, own) return tonumber(redis.call("HGET", "nbq:rates", name) or own) or 0 end

  local function next_token(name) return tonumber(redis.call("HGET", "nbq:rate:" .. name, "next") or 0) end

  local function spend_token(name, rate, now)
    local bucket = "nbq:rate:" .. name
    local next = math.max(next_token(name), now - BURST_MS) + 1000 / rate
    redis.call("HSET", bucket, "next", string.format("%.3f", next))
    redis.call("PEXPIRE", bucket, math.ceil(math.max(0, next - now)) + 86400000)
  end

  -- A lock is held for as long as its holder's claim holds: what ends that, or takes it away, frees the lock.
  local function lock_is_free(lock, queue, id, now)
    local of, holder, place, until_ms = unpack(redis.call("HMGET", "nbq:lock:" .. lock, "q", "i", "p", "u"))
    if not of or (holder == id and of == queue) then return true end
    if place == "" then return tonumber(until_ms) <= now end
    if redis.call("HGET", key(of, "claims"), holder) ~= place then return true end
    -- Over AMQP a claim is ended by who gets its message again, which the server may have lost.
    local whose = string.match(place, "^(.*)#")
    return whose and tonumber(redis.call("ZSCORE", "nbq:leases", whose) or 0) < now - LAPSED_MS
  end

  local function take_lock(lock, queue, id, place, until_ms)
    redis.call("HSET", "nbq:lock:" .. lock, "q", queue, "i", id, "p", place, "u", until_ms)
    redis.call("PEXPIRE", "nbq:lock:" .. lock, LIVE_MS)
  end

  -- Puts what waited at a gate in front of its queue; on a broker that is elsewhere, among what is due.
  local function let_go(queue, member, elsewhere)
    if elsewhere then
      redis.call("ZADD", key(queue, "delayed"), 0, member)
      return
    end
    local id, header, body, level, c = opened(redis.call("HGET", key(queue, "bodies"), member), member)
    redis.call("HDEL", key(queue, "bodies"), member)
    redis.call("XADD", key(queue, "r"), "*", "i", id, "h", header, "b", body, "a", c[1], "c", c[2], "w", c[3], "p", level)
  end

  -- Tells when a gate opens for the task that is next, and if that is now gives it what it waited for.
  local function open_for(kind, name, queue, id, now)
    if kind == "l" then
      if not lock_is_free(name, queue, id, now) then return now + LOCK_LOOK_MS end
      take_lock(name, queue, id, "", now + RESERVED_MS)
      return now
    end
    local rate = per_second(name, redis.call("HGET", "nbq:rate:" .. name, "own"))
    if rate <= 0 then return now end
    local next = next_token(name)
    if next > now then return next end
    spend_token(name, rate, now)
    redis.call("SET", "nbq:permit:" .. id, "1", "PX", LIVE_MS)
    return now
  end

  -- Lets those of a queue go that may, in their order, and sets the timer for the next one.
  local function tick(queue, gate, now, elsewhere)
    local list, timers, timer = key(queue, "gate:" .. gate), key(queue, "delayed"), "\1" .. gate
    local kind, name = string.sub(gate, 1, 1), string.sub(gate, 3)
    redis.call("ZREM", timers, timer)
    for _ = 1, 100 do
      local member = redis.call("LINDEX", list, 0)
      if not member then
        redis.call("SREM", "nbq:gate:" .. gate, queue)
        return
      end
      local packed = redis.call("HGET", key(queue, "bodies"), member)
      local id = packed and opened(packed, member)
      if id and not is_over(id) then -- what has ended is let go too, for free: who claims it sees that
        local opens = open_for(kind, name, queue, id, now)
        if opens > now then
          redis.call("ZADD", timers, opens, timer)
          return
        end
      end
      redis.call("LPOP", list)
      if id then let_go(queue, member, elsewhere) end
    end
    redis.call("ZADD", timers, now, timer)
  end

  -- Tells at which gate a claimed task has to wait; nil: it may run, and has what its gates give.
  local function gate_for(queue, id, place, name, own, lock, now)
    local mine = lock ~= "" and redis.call("HGET", "nbq:lock:" .. lock, "i") == id
    if lock ~= "" and not mine then
      if redis.call("EXISTS", "nbq:gate:l:" .. lock) == 1 or not lock_is_free(lock, queue, id, now) then return "l:" .. lock end
    end
    local rate = name ~= "" and per_second(name, own) or 0
    if rate > 0 and redis.call("DEL", "nbq:permit:" .. id) == 0 then
      if redis.call("EXISTS", "nbq:gate:r:" .. name) == 1 or next_token(name) > now then
        redis.call("HSET", "nbq:rate:" .. name, "own", own)
        if mine then redis.call("DEL", "nbq:lock:" .. lock) end
        return "r:" .. name
      end
      spend_token(name, rate, now)
    end
    if lock ~= "" then take_lock(lock, queue, id, place, 0) end
    return nil
  end

  -- Lets a message wait at a gate; one that has waited before goes first.
  local function wait_at(queue, gate, member, packed, first)
    redis.call("HSET", key(queue, "bodies"), member, packed)
    redis.call(first and "LPUSH" or "RPUSH", key(queue, "gate:" .. gate), member)
    redis.call("SADD", "nbq:gate:" .. gate, queue)
  end

  local function unlock(lock, now, elsewhere)
    local of, holder, place = unpack(redis.call("HMGET", "nbq:lock:" .. lock, "q", "i", "p"))
    if of and place ~= "" and redis.call("HGET", key(of, "claims"), holder) ~= place then
      redis.call("DEL", "nbq:lock:" .. lock)
    end
    for _, queue in ipairs(redis.call("SMEMBERS", "nbq:gate:l:" .. lock)) do tick(queue, "l:" .. lock, now, elsewhere) end
  end

  return {tick = tick, gate_for = gate_for, wait_at = wait_at, unlock = unlock, next_token = next_token}
end

-- Puts a delayed message on its queue, from where workers take it; false if it isn't delayed.
local function release(queue, member)
  if is_timer(member) then
    gates().tick(queue, string.sub(member, 2), now_ms(), false)
    return false
  end
  local packed = redis.call("HGET", key(queue, "bodies"), member)
  local there = redis.call("ZREM", key(queue, "delayed"), member) == 1
  redis.call("HDEL", key(queue, "bodies"), member)
  if not packed then return false end
  local id, header, body, level, counters = opened(packed, member)
  if not id then
    count("refused:format")
    return false
  end
  enqueue(queue, id, header, body, 0, level, counters)
  return there
end

-- Returns the milliseconds until the next delayed message of a queue is due, if that is sooner than `so_far` (-1: never).
local function sooner(queue, now, so_far)
  local first = redis.call("ZRANGE", key(queue, "delayed"), 0, 0, "WITHSCORES")
  if not first[2] then return so_far end
  local wait = math.max(0, tonumber(first[2]) - now)
  return (so_far < 0 or wait < so_far) and wait or so_far
end

-- Writes the first record of what is about to be sent. Returns 1, 2 for a repeat, or -1 where the id belongs to a live task.
local function write_pending(records, ttl_ms, id, nonce, record, wait_ms)
  local old = redis.call("GET", records .. id)
  if old and string.find(old, nonce, 1, true) then return 2 end
  if is_live(state_of(old)) then return -1 end
  redis.call("SET", records .. id, record, "PX", math.max(ttl_ms, LIVE_MS) + math.max(0, wait_ms))
  return 1
end

-- Lets a task begin anew that failed or was given up: what was known of its end goes. Returns "sent" and its old record,
-- "unknown" (no message was kept, or another task of its id has ended otherwise since), or "live".
local function begin_anew(records, ttl_ms, id, record, group)
  local old = redis.call("GET", records .. id)
  local state = state_of(old)
  if is_live(state) then return "live" end
  if redis.call("HEXISTS", DEAD, id) == 0 and (redis.call("EXISTS", FAILED .. id) == 0 or state ~= "FAILURE") then
    return "unknown"
  end
  if record ~= "" then
    redis.call("SET", records .. id, record, "PX", math.max(ttl_ms, LIVE_MS))
  else
    redis.call("DEL", records .. id) -- a member of a map has none before it ends
  end
  if group ~= "" and state then redis.call("HINCRBY", "nbq:progress:" .. group, state, -1) end
  return "sent", old
end

-- The keeper starts a worker where none is; one hint is enough.
local function rouse(wake)
  if wake ~= "" and redis.call("HLEN", "nbq:workers") == 0 and redis.call("LLEN", wake) == 0 then
    redis.call("LPUSH", wake, "sent")
  end
end

-- What follows is for queues that are elsewhere, over AMQP. Leases are of consumers: until when each holds, milliseconds.
local LEASES = "nbq:leases"

-- Remembers that a queue and a priority are in use.
local function note_queue(queue, level)
  redis.call("SADD", "nbq:queues", queue)
  if level > 0 then redis.call("SADD", key(queue, "levels"), level) end
end

-- How often a message was run, ended its child and lost its worker, beyond what it says of itself.
local function counters_of(id)
  local a, c, w = string.match(redis.call("GET", "nbq:attempts:" .. id) or "", "^(%d+) (%d+) (%d+)$")
  return {whole(a, 0), whole(c, 0), whole(w, 0)}
end

local function charge_with(id, charge, ttl_ms)
  local counters = counters_of(id)
  counters[1] = counters[1] + 1
  if charge == "child" then counters[2] = counters[2] + 1 end
  if charge == "worker" then counters[3] = counters[3] + 1 end
  redis.call("SET", "nbq:attempts:" .. id, table.concat(counters, " "), "PX", math.max(ttl_ms, LIVE_MS))
  return counters
end
