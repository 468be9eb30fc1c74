-- Ends one lease, if it is still the worker's.
-- KEYS  waiting, scheduled, sleepers, paused, held by this worker, totals, dead, the job's unique key (or waiting, if it has none), cancelled
-- ARGV  wake channel, queue, 1 in a Cluster, tag, where to ('done', 'scheduled', 'dead', 'waiting'), 1 if it has a unique key,
--       the job's new bytes, delay (ms), reason, most dead, their age (ms)
-- Reply 1, or 0 if the job is not the worker's any more (then nothing is done)
-- Cost  O(log of what is scheduled or dead)
local tag, to, job = ARGV[4], ARGV[5], ARGV[7]
if redis.call('HDEL', KEYS[5], tag) == 0 then return 0 end
local now = clock()
local ready = false
if to == 'done' then
  redis.call('HINCRBY', KEYS[6], 'done', 1)
elseif to == 'waiting' then
  redis.call('LPUSH', KEYS[1], job)
  ready = true
else
  redis.call('HINCRBY', KEYS[6], 'failed', 1)
  if to == 'scheduled' then
    redis.call('ZADD', KEYS[2], now + tonumber(ARGV[8]), job)
    ready = true
  else
    bury(KEYS[7], now, ARGV[9], job, tonumber(ARGV[10]), tonumber(ARGV[11]))
    -- A set that is empty costs the next fetch nothing.
    redis.call('ZREM', KEYS[9], tag)
  end
end
if ARGV[6] == '1' and (to == 'done' or to == 'dead') and redis.call('GET', KEYS[8]) == tag then redis.call('DEL', KEYS[8]) end
if ready and redis.call('EXISTS', KEYS[4]) == 0 then wake(KEYS[3], ARGV[1], ARGV[2], 1, ARGV[3] == '1') end
return 1
