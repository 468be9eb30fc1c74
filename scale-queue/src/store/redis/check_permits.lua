-- Counts the free permits of a key; if there is none, the queue is recorded as having a line.
-- KEYS  holders by the expiry of their permit, queues that have a line for the key
-- ARGV  permits, queue
-- Reply number of free permits
-- Cost  O(log holders)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local free = tonumber(ARGV[1]) - redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf')
if free > 0 then return free end
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('PEXPIRE', KEYS[2], 60000)
return 0
