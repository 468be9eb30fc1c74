-- Says whether a permit of a key is free; if none is, the queue is known to have a line.
-- KEYS  holders by the end of their hold, queues that have a line for the key
-- ARGV  permits, queue
-- Reply 1 or 0
-- Cost  O(log holders)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf') < tonumber(ARGV[1]) then return 1 end
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('PEXPIRE', KEYS[2], 60000)
return 0
