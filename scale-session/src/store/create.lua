-- Makes a session.
-- KEYS  the session's hash
-- ARGV  idle (ms), absolute (ms), then field and value by turns
-- Reply 1
-- Cost  TIME, HSET, PEXPIRE; O(fields)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local idle, absolute = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('HSET', KEYS[1], '\0ends', now + absolute, '\0renewed', now)
for i = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[1], math.min(idle, absolute))
return 1
