-- Adds jobs to a batch, once for each name.
-- KEYS  batch
-- ARGV  name of the addition, number of jobs
-- Reply number of the first job, or nil if the batch is unknown or the jobs that follow it are
--       stored
-- Cost  O(1)
local batch, field = KEYS[1], 'grown:' .. ARGV[1]
local total, life, followed, first = unpack(redis.call('HMGET', batch, 'total', 'life', 'followed', field))
if not total or followed then return nil end
if not first then
  first = total
  redis.call('HSET', batch, 'total', total + ARGV[2], field, first)
end
redis.call('PEXPIRE', batch, life)
return tonumber(first)
