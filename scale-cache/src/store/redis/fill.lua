-- Stores a loaded entry if the lease is still held; without bytes, only releases the lease.
-- KEYS  entry, lease
-- ARGV  token [, bytes, lifetime (ms)]
-- Reply 1, or 0 if this token no longer holds the lease (then nothing is stored)
-- Cost  GET, DEL, SET; O(size)
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[2] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
