-- Registers an entry.
-- KEYS  names by the end of their registration, descriptions
-- ARGV  name, description, life (ms), maximum number of entries
-- Cost  O(log entries); expired and surplus entries are removed in steps of 100
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4])
if #gone == 0 and over >= 0 then gone = redis.call('ZRANGE', KEYS[1], 0, math.min(over, 99)) end
if #gone > 0 then
  redis.call('ZREM', KEYS[1], unpack(gone))
  redis.call('HDEL', KEYS[2], unpack(gone))
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < tonumber(ARGV[3]) then redis.call('PEXPIRE', key, ARGV[3]) end
end
