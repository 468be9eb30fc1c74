-- Takes the next of evenly spaced turns.
-- KEYS  when the next turn is, ms with fractions
-- ARGV  spacing (ms, with fractions), how many may come at once
-- Reply ms to wait for the turn
-- Cost  O(1)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
local spacing, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local next = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
redis.call('SET', KEYS[1], string.format('%.3f', next + spacing), 'PX', math.ceil(next + spacing - now) + 1)
return math.max(0, math.ceil(next - now - spacing * (burst - 1)))
