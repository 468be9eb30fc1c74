-- Gives a tag a new version, above the old one even if the clock has gone back, and tells every process.
-- KEYS  tag
-- ARGV  its life (ms), channel, tag
-- Reply version (us)
-- Cost  GET, TIME, SET, PUBLISH; O(processes), however many entries carry the tag
-- A removal first: a full store lets a script finish that has begun to write.
local old = tonumber(redis.call('GET', KEYS[1]) or 0)
redis.call('DEL', KEYS[1])
local time = redis.call('TIME')
local version = string.format('%.0f', math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), old + 1))
redis.call('SET', KEYS[1], version, 'PX', ARGV[1])
redis.call('PUBLISH', ARGV[2], 't' .. version .. ':' .. ARGV[3])
return tonumber(version)
