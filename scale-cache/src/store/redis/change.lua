-- Writes or removes an entry, whoever loads it; that one's fill will be refused.
-- KEYS  entry, lease
-- ARGV  channel, message [, bytes, how long to keep (ms)]
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
