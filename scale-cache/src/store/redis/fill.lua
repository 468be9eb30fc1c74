-- Stores what was loaded, if the lease still stands; without bytes, only gives the lease up.
-- KEYS  entry, lease
-- ARGV  token [, bytes, how long to keep (ms)]
-- Reply 1, or 0 if the lease is not this token's any more (then nothing is stored)
-- Cost  GET, DEL, SET; O(size)
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[2] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
