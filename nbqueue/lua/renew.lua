-- Renews the leases of one consumer and says that its worker lives. XCLAIM without FORCE takes only what is
-- pending, and an entry that is pending never changes hands, so what comes back is still ours.
-- Returns the entries held, and [id, mark] of those that were revoked.
local consumer, worker, advert, items = unpack(cmsgpack.unpack(ARGV[1]))
local held, marks = {}, {}
local any_revoked = redis.call("HLEN", "nbq:revoked") > 0
for n, item in ipairs(items) do
  local queue, lane, entry, id = unpack(item)
  local mine = redis.pcall("XCLAIM", key(queue, lane), GROUP, consumer, 0, entry, "JUSTID")
  held[n] = (type(mine) == "table" and not mine.err and mine[1] == entry) and 1 or 0
  if any_revoked then
    local mark = redis.call("HGET", "nbq:revoked", id)
    if mark then table.insert(marks, {id, mark}) end
  end
end
if advert ~= "" then
  local t = redis.call("TIME")
  redis.call("HSET", "nbq:workers", worker, '{"at":' .. t[1] .. "," .. string.sub(advert, 2))
end
return {held, marks}
