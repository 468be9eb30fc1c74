-- Returns a tag's version; a tag that is new or forgotten counts as invalidated now.
-- KEYS  tag
-- ARGV  lifetime (ms)
-- Reply version (us), and ':' and a position if there is one; the time (us)
-- Cost  GET, TIME, PEXPIRE, and SET the first time; O(1)
local version = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
if version then
  -- A read tag is in use, so its lifetime is extended.
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  return { version, now }
end
redis.call('SET', KEYS[1], now, 'PX', ARGV[1])
return { now, now }
