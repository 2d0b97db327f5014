-- Lets those go that wait for locks whose holders have ended.
local locks, elsewhere = unpack(cmsgpack.unpack(ARGV[1]))
local now = now_ms()
for _, lock in ipairs(locks) do gates().unlock(lock, now, elsewhere == 1) end
return 1
