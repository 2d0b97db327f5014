-- Claims messages that RabbitMQ has delivered. A claim is a token among the claims of its queue, and holds for as long
-- as the lease of its consumer. Asked again with the same token it says the same. Returns for each:
--   {1, attempt, child deaths, worker losses, record, mark, outbox}: claimed; counters are those beyond the message's own
--   {2, token}: the asker itself has it already, under another token
--   {3, milliseconds}: somebody else has it, until then at least
local consumer, lease_ms, patient, records, ttl_ms, items = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
redis.call("ZADD", LEASES, now + lease_ms, consumer)
local verdicts = {}

-- A lease proves nothing by itself: it runs on while a machine sleeps, and all its workers wake at the same time. So it is
-- to be seen lapsed twice, half a lease apart, in which who lives renews it. Returns the milliseconds until the second look.
local function lapsed_for(id, holder, now, lease_ms)
  local seen = "nbq:lapsed:" .. id
  local whose, at = string.match(redis.call("GET", seen) or "", "^(.*) (%d+)$")
  if whose == holder then
    local left = at + lease_ms / 2 - now
    if left <= 0 then redis.call("DEL", seen) end
    return left
  end
  redis.call("SET", seen, holder .. " " .. now, "PX", 10 * lease_ms)
  return lease_ms / 2
end

local function claim(queue, id, token, nonce)
  local claims = key(queue, "claims")
  local holder = redis.call("HGET", claims, id)
  local lost = false
  if holder and holder ~= token then
    local whose = string.match(holder, "^(.*)#") or ""
    if whose == consumer then return {2, holder} end
    local left = tonumber(redis.call("ZSCORE", LEASES, whose) or 0) - now
    if left > 0 then
      redis.call("DEL", "nbq:lapsed:" .. id)
      return {3, left}
    end
    -- The asker, or the server, may just have been away itself: others get the time to come back.
    if patient == 1 then return {3, lease_ms} end
    left = lapsed_for(id, holder, now, lease_ms)
    if left > 0 then return {3, left} end
    lost = true
  end
  if holder ~= token then redis.call("HSET", claims, id, token) end
  local counters = counters_of(id)
  if lost then counters = charge_with(id, "worker", ttl_ms) end
  local record = redis.call("GET", records .. id) or ""
  local outbox = ""
  if record ~= "" and is_own_pending(record, nonce) then
    record = ""
  else
    -- Also where the record has expired since: what was to follow is not lost with it.
    outbox = redis.call("GET", "nbq:outbox:" .. id) or ""
  end
  local mark = redis.call("HGET", "nbq:revoked", id) or ""
  return {1, counters[1], counters[2], counters[3], record, mark, outbox}
end

for n, item in ipairs(items) do verdicts[n] = claim(unpack(item)) end
return verdicts
