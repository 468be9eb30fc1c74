-- A tag's version; one seen for the first time, or forgotten, was invalidated just now.
-- KEYS  tag
-- ARGV  its life (ms)
-- Reply version (us), and ':' and a position if one was given; the time (us)
-- Cost  GET, TIME, PEXPIRE, and SET the first time; O(1)
local version = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
if version then
  -- What is asked for is in use.
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  return { version, now }
end
redis.call('SET', KEYS[1], now, 'PX', ARGV[1])
return { now, now }
