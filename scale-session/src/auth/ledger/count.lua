-- Reads a counter, or adds to it, and keeps it for no shorter than before.
-- KEYS  the counter
-- ARGV  how long it is kept (ms), what is added
-- Reply its value, or nil if there is none and nothing is added
-- Cost  INCRBY or GET, PTTL, PEXPIRE; O(1)
local add = tonumber(ARGV[2])
local count = add > 0 and redis.call('INCRBY', KEYS[1], add) or redis.call('GET', KEYS[1])
if count and redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count and tonumber(count)
