-- Records that all jobs that follow a batch are stored.
-- KEYS  batch, done bits, dead bits
-- ARGV  time for which the batch is still remembered (ms)
-- Reply 1, or 0 if the batch is unknown
-- Cost  O(jobs / 8) to free the bits
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'followed', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('UNLINK', KEYS[2], KEYS[3])
return 1
