-- Passes a permit on, if it has not expired.
-- KEYS  holders by the expiry of their permit, queues that have a line for the key
-- ARGV  current holder, next holder, life (ms), 1 to pass the permit on even if no queue is
--       recorded as having a line, permits
-- Reply 1 and the number of other free permits, then queues that have a line, at most 100; or 0 if
--       no queue has a line, the permit has expired, or more than that many permits are held: then
--       nothing is passed on
-- Cost  O(log holders)
local queues = redis.call('ZRANGE', KEYS[2], 0, 99)
if #queues == 0 and ARGV[4] ~= '1' then return { 0 } end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) <= now then return { 0 } end
local held, most = redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf'), tonumber(ARGV[5])
if held > most then return { 0 } end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
table.insert(queues, 1, 1 + most - held)
return queues
