-- Takes back the pending records of messages that could not be sent.
local records, items = unpack(cmsgpack.unpack(ARGV[1]))
for _, item in ipairs(items) do
  local id, nonce = unpack(item)
  local old = nonce ~= "" and redis.call("GET", records .. id)
  if old and string.find(old, nonce, 1, true) and string.find(old, '"status":"PENDING"', 1, true) then
    redis.call("DEL", records .. id)
  end
end
return 1
