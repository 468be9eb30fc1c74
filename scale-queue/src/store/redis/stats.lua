-- Counts the jobs of a queue atomically, so that a job that moves is counted once.
-- KEYS  waiting, promoted, suspects, scheduled, blocked, died, paused, totals, leases, high, low
-- ARGV  prefix of the keys of the jobs held by workers
-- Reply waiting, promoted, suspects, scheduled, blocked, dead, 1 if paused, sums of done, failed,
--       died and removed, leased, then the first waiting, promoted, suspect, high and low, each ''
--       if there is none
-- Cost  O(workers that hold jobs), at most 1,000
local reply = {}
for n = 1, 3 do reply[n] = redis.call('LLEN', KEYS[n]) end
reply[1] = reply[1] + redis.call('LLEN', KEYS[10]) + redis.call('LLEN', KEYS[11])
for n = 4, 6 do reply[n] = redis.call('ZCARD', KEYS[n]) end
reply[7] = redis.call('EXISTS', KEYS[7])
for n, name in ipairs({ 'done', 'failed', 'died', 'removed' }) do
  reply[7 + n] = tonumber(redis.call('HGET', KEYS[8], name) or 0)
end
local leased = 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[9], 0, 999)) do leased = leased + redis.call('HLEN', ARGV[1] .. worker) end
reply[12] = leased
for n, list in ipairs({ 1, 2, 3, 10, 11 }) do reply[12 + n] = redis.call('LINDEX', KEYS[list], 0) or '' end
return reply
