-- Reads a counter or adds to it, and never shortens its lifetime.
-- KEYS  the counter
-- ARGV  lifetime (ms), summand
-- Reply the value, or nil if there is no counter and nothing is added
-- Cost  INCRBY or GET, PTTL, PEXPIRE; O(1)
local add = tonumber(ARGV[2])
local count = add > 0 and redis.call('INCRBY', KEYS[1], add) or redis.call('GET', KEYS[1])
if count and redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count and tonumber(count)
