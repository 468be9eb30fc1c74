-- Renews a worker's lease, if it still exists.
-- KEYS  leases
-- ARGV  worker, lease (ms)
-- Reply 1, or 0 if there is no lease any more
-- Cost  O(log workers)
-- A removal first: a full store lets a script finish that has begun to write.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[1], clock() + tonumber(ARGV[2]), ARGV[1])
return 1
