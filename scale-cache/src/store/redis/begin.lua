-- Requests the lease to load a key.
-- KEYS  entry, lease
-- ARGV  token, lease (ms)
-- Reply whether the lease was granted (0/1), server time (us), the entry if there is one
-- Cost  TIME, SET, GET; O(size)
local time = redis.call('TIME')
local won = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
return { won, tonumber(time[1]) * 1000000 + tonumber(time[2]), redis.call('GET', KEYS[1]) }
