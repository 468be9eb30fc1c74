-- Takes a job from the dead: to wait again, or for good.
-- KEYS  waiting, sleepers, paused, dead, cancelled
-- ARGV  wake channel, queue, 1 in a Cluster, reason, the job as it lies there, the job's new bytes or nothing
-- Reply 1, or 0 if it is not there
-- Cost  O(log dead)
if redis.call('ZREM', KEYS[4], struct.pack('>Hc0', #ARGV[4], ARGV[4]) .. ARGV[5]) == 0 then return 0 end
redis.call('ZREM', KEYS[5], string.sub(ARGV[5], 2, 17))
if ARGV[6] == '' then return 1 end
redis.call('RPUSH', KEYS[1], ARGV[6])
if redis.call('EXISTS', KEYS[3]) == 0 then wake(KEYS[2], ARGV[1], ARGV[2], 1, ARGV[3] == '1') end
return 1
