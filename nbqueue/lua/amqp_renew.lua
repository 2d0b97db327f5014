-- Renews the lease of a consumer and says that its worker lives. Returns which of its claims hold, and [id, mark] of
-- those that were revoked.
local consumer, lease_ms, worker, advert, items = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
redis.call("ZADD", LEASES, now + lease_ms, consumer)
redis.call("ZREMRANGEBYSCORE", LEASES, "-inf", now - 86400000)
local held, marks = {}, {}
local any_revoked = redis.call("HLEN", "nbq:revoked") > 0
for n, item in ipairs(items) do
  local queue, id, token = unpack(item)
  held[n] = redis.call("HGET", key(queue, "claims"), id) == token and 1 or 0
  local mark = any_revoked and redis.call("HGET", "nbq:revoked", id)
  if mark then table.insert(marks, {id, mark}) end
end
if advert ~= "" then
  redis.call("HSET", "nbq:workers", worker, '{"at":' .. math.floor(now / 1000) .. "," .. string.sub(advert, 2))
end
return {held, marks}
