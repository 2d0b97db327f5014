-- What is done with dead letters: `list` returns [id, record] of all, the newest last; `drop` how many it dropped.
local what, items = unpack(cmsgpack.unpack(ARGV[1]))

if what == "list" then
  local found = {}
  for _, id in ipairs(redis.call("ZRANGE", DEAD .. ":at", 0, -1)) do
    local known = letter(id)
    table.insert(found, {id, known and known[3] or ""})
  end
  return found
end

local dropped = 0
for _, id in ipairs(items) do dropped = dropped + forget_dead(id) end
return dropped
