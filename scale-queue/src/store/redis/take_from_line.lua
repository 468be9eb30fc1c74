-- Leases the first job in line.
-- KEYS  paused, blocked, lines, paces, leases, held by this worker, cancelled, mark that the worker
--       has left
-- ARGV  line, worker, lease (ms)
-- Reply the job, or nil if there is none that may be taken now
-- Cost  O(log blocked)
if redis.call('EXISTS', KEYS[1], KEYS[8]) > 0 then return false end
local members = first_of(KEYS[2], ARGV[1], 2)
if #members < 2 then
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('HDEL', KEYS[4], ARGV[1])
end
if #members == 0 then return false end
local job = job_of(members[1])
-- A cancelled job is ended by the worker that fetches it.
if redis.call('EXISTS', KEYS[7]) == 1 and redis.call('ZSCORE', KEYS[7], tag_of(job)) then
  if #members < 2 then redis.call('ZADD', KEYS[3], clock(), ARGV[1]) end
  return false
end
redis.call('ZREM', KEYS[2], members[1])
redis.call('HSET', KEYS[6], tag_of(job), job)
redis.call('ZADD', KEYS[5], clock() + tonumber(ARGV[3]), ARGV[2])
return job
