-- Writes or removes an entry, and ends a lease on it; the fill of the lease's holder is then
-- refused.
-- KEYS  entry, lease
-- ARGV  channel, message [, bytes, lifetime (ms)]
-- Reply 1
-- Cost  DEL, SET or UNLINK, PUBLISH; O(size + processes)
redis.call('DEL', KEYS[2])
if ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
else
  redis.call('UNLINK', KEYS[1])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
