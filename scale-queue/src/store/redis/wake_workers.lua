-- Wakes workers: one for another that takes nothing for now, many when a pause ends.
-- KEYS  sleepers, paused
-- ARGV  wake channel, queue, 1 in a Cluster, how many [, a worker that is not to be woken any more]
-- Reply 1
-- Cost  ZPOPMAX and PUBLISH for each worker woken
if ARGV[5] then redis.call('ZREM', KEYS[1], ARGV[5]) end
if redis.call('EXISTS', KEYS[2]) == 0 then wake(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[3] == '1') end
return 1
