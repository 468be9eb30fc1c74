-- Holds on to places for longer.
-- KEYS  the set of one policy's places
-- ARGV  us until a place frees itself; then the permits
-- Reply number of permits that still held their places
-- Cost  one TIME, one ZADD for each permit
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local hold, held = tonumber(ARGV[1]), 0
for i = 2, #ARGV do
  held = held + redis.call('ZADD', KEYS[1], 'XX', 'CH', now + hold, ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], string.format('%d', math.ceil(hold / 1000)))
return held
