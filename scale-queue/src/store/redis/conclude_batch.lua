-- Notes that everything that follows a batch's end is stored.
-- KEYS  batch, done bits, dead bits
-- ARGV  how long the batch is still known (ms)
-- Reply 1, or 0 if there is no such batch
-- Cost  O(jobs / 8) to free the bits
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'followed', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('UNLINK', KEYS[2], KEYS[3])
return 1
