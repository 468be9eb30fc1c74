-- Replaces a leased job, if it is still the worker's.
-- KEYS  held by this worker
-- ARGV  tag, the job
-- Reply 1, or 0 if the job is not the worker's any more
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
