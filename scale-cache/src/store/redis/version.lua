-- A tag's version; one seen for the first time, or forgotten, was invalidated just now.
-- KEYS  tag
-- ARGV  its life (ms)
-- Reply version (us), and ':' and a position if one was given
-- Cost  GET, and TIME and SET the first time; O(1)
local version = redis.call('GET', KEYS[1])
if version then return version end
local time = redis.call('TIME')
version = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
redis.call('SET', KEYS[1], version, 'PX', ARGV[1])
return version
