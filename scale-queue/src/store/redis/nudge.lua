-- Wakes workers: one for a wake that another could not use, many when a pause ends.
-- KEYS  sleepers, paused
-- ARGV  wake channel, queue, 1 in a Cluster, how many
-- Reply 1
-- Cost  ZPOPMAX and PUBLISH for each worker woken
if redis.call('EXISTS', KEYS[2]) == 0 then wake(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[3] == '1') end
return 1
