-- The second half of a claim, for entries that a blocking read has brought. Returns for each nil's stand-in
-- (an empty array: drop it) or what is known of it.
local records, entries = unpack(cmsgpack.unpack(ARGV[1]))
local verdicts = {}
for n, item in ipairs(entries) do
  local queue, lane, entry, id, nonce = unpack(item)
  verdicts[n] = admit(queue, key(queue, lane), entry, id, nonce, records) or {}
end
return verdicts
