-- Takes out a dead job, to wait again or to be removed.
-- KEYS  waiting, sleepers, paused, dead, graves, cancelled, totals, the unique key that the job is
--       to hold (or waiting, if none), high, low, blocked, turns, taken
-- ARGV  wake channel, queue, 1 in a Cluster, tag, time of death (ms), 1 to let the job wait again,
--       life of its unique key (ms; 0: none), its new content or '' if unchanged, number of turns of
--       its group and the group's key (0, '': none)
-- Reply 1, or 0 if the job is not there or another job holds the key
-- Cost  O(log dead)
local tag, life = ARGV[4], tonumber(ARGV[7])
local died = redis.call('ZSCORE', KEYS[4], tag)
if not died or tonumber(died) ~= tonumber(ARGV[5]) then return 0 end
if life > 0 then
  local holder = redis.call('GET', KEYS[8])
  if holder and holder ~= tag then return 0 end
end
local grave = redis.call('HGET', KEYS[5], tag)
redis.call('ZREM', KEYS[4], tag)
redis.call('HDEL', KEYS[5], tag)
redis.call('ZREM', KEYS[6], tag)
if not grave then return 0 end
if ARGV[6] ~= '1' then return 1 end
if life > 0 then redis.call('SET', KEYS[8], tag, 'PX', life) end
local job = string.sub(grave, struct.unpack('>H', grave) + 3)
if ARGV[8] ~= '' then
  job = ARGV[8]
elseif #job >= 19 then
  job = string.sub(job, 1, 17) .. '\0\0' .. string.sub(job, 20)
end
redis.call('HINCRBY', KEYS[7], 'died', -1)
local groups = { blocked = KEYS[11], turns = KEYS[12], taken = KEYS[13], totals = KEYS[7] }
if ARGV[9] ~= '0' and not join_group(groups, job, tonumber(ARGV[9]), ARGV[10]) then return 1 end
redis.call('RPUSH', list_of(job, KEYS[9], KEYS[1], KEYS[10]), job)
if redis.call('EXISTS', KEYS[3]) == 0 then wake(KEYS[2], ARGV[1], ARGV[2], 1, ARGV[3] == '1') end
return 1
