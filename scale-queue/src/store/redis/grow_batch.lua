-- Adds jobs to a batch, once for each name.
-- KEYS  batch
-- ARGV  name of the addition, number of jobs
-- Reply number of the first job and of the jobs added, or nil if the batch is unknown or the jobs
--       that follow it are stored
-- Cost  O(1)
local batch, field = KEYS[1], 'grown:' .. ARGV[1]
local total, life, followed, added = unpack(redis.call('HMGET', batch, 'total', 'life', 'followed', field))
if not total or followed then return nil end
if not added then
  added = total .. ' ' .. ARGV[2]
  redis.call('HSET', batch, 'total', total + ARGV[2], field, added)
end
redis.call('PEXPIRE', batch, life)
local first, count = string.match(added, '(%d+) (%d+)')
return { tonumber(first), tonumber(count) }
