-- GCRA as it is usually written: one key, one call. ARGV: us per unit, burst.
local time = redis.call('TIME')
local now = (time[1] - 1735689600) * 1000000 + time[2]
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local after = tat + interval
if after - now > interval * burst then return 0 end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000) + 1)
return 1
