-- Ends one lease, if it is still the worker's.
-- KEYS  promoted, scheduled, sleepers, paused, leases, held by this worker, totals, dead, graves,
--       the job's unique key (or waiting, if it has none), cancelled, blocked, lines, paces,
--       unhandled, unbegun, trials, suspects, turns, taken, waiting, high, low, drained
-- ARGV  wake channel, queue, 1 in a Cluster, worker, tag, destination ('done', 'removed', 'retry',
--       'deferred', 'dead', 'given_up' (dead, but no attempt has failed now), 'waiting', 'suspect',
--       'blocked', 'unhandled'), 1 if the job has a unique key, its new bytes or '' if unchanged,
--       delay (ms), reason or line, maximum number of dead jobs or pace (ms), maximum age of dead
--       jobs (ms)
-- Reply 1, or 0 if the job is not the worker's any more (then nothing is changed)
-- Cost  O(log jobs that are scheduled, blocked or dead)
local worker, tag, to, delay = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[9])
local job = redis.call('HGET', KEYS[6], tag)
if not job then return 0 end
redis.call('HDEL', KEYS[6], tag)
if redis.call('EXISTS', KEYS[6]) == 0 then
  redis.call('ZREM', KEYS[5], worker)
  redis.call('HDEL', KEYS[16], worker)
  redis.call('HDEL', KEYS[17], worker)
end
if ARGV[8] ~= '' then job = ARGV[8] end
local now = clock()
local ready, gone, joined = 0, false, nil
local groups = { blocked = KEYS[12], turns = KEYS[19], taken = KEYS[20], totals = KEYS[7], drained = KEYS[24] }
if to == 'done' then
  redis.call('HINCRBY', KEYS[7], 'done', 1)
  gone = true
elseif to == 'removed' then
  redis.call('HINCRBY', KEYS[7], 'removed', 1)
  gone = true
elseif to == 'waiting' then
  local group = back_in_line(groups, job)
  if group then
    joined = give_turns(groups, group)
  else
    -- Not behind its line: the job may have been the first in it, and then no other would be tried.
    redis.call('LPUSH', KEYS[1], job)
  end
  ready = 1
elseif to == 'suspect' then
  redis.call('RPUSH', KEYS[18], job)
  ready = 1
elseif to == 'retry' or to == 'deferred' then
  if to == 'retry' then redis.call('HINCRBY', KEYS[7], 'failed', 1) end
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', KEYS[2], now + delay, job)
  -- Two workers set alarms for this job, in case one of them dies.
  if not first or now + delay < tonumber(first) then ready = 2 end
elseif to == 'blocked' then
  local line, pace = ARGV[10], tonumber(ARGV[11])
  redis.call('ZADD', KEYS[12], 0, blocked_member(line, pushed_order(job), job))
  local is_new = redis.call('ZADD', KEYS[13], now + delay, line)
  if pace > 0 then redis.call('HSET', KEYS[14], line, ARGV[11]) end
  -- A worker has to set an alarm for the line.
  ready = 2 * is_new
elseif to == 'unhandled' then
  redis.call('ZADD', KEYS[12], 0, blocked_member(ARGV[10], time_order(now), job))
  redis.call('ZADD', KEYS[13], 'NX', now + 1000, ARGV[10])
  -- All idle workers are woken, because any of them may be able to handle the job.
  if redis.call('SADD', KEYS[15], ARGV[10]) == 1 then ready = 1000 end
else
  if to ~= 'given_up' then redis.call('HINCRBY', KEYS[7], 'failed', 1) end
  redis.call('HINCRBY', KEYS[7], 'died', 1)
  redis.call('ZADD', KEYS[8], now, tag)
  redis.call('HSET', KEYS[9], tag, struct.pack('>Hc0', #ARGV[10], ARGV[10]) .. job)
  trim_dead(KEYS[8], KEYS[9], now, tonumber(ARGV[11]), tonumber(ARGV[12]))
  -- An empty set costs the next fetch nothing.
  redis.call('ZREM', KEYS[11], tag)
  gone = true
end
if gone then joined = end_turn(groups, tag) end
for _, next in ipairs(joined or {}) do
  redis.call('RPUSH', list_of(next, KEYS[22], KEYS[21], KEYS[23]), next)
  ready = ready + 1
end
if gone and ARGV[7] == '1' and redis.call('GET', KEYS[10]) == tag then redis.call('DEL', KEYS[10]) end
if ready > 0 and redis.call('EXISTS', KEYS[4]) == 0 then wake(KEYS[3], ARGV[1], ARGV[2], ready, ARGV[3] == '1') end
return 1
