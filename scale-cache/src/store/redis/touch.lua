-- Overwrites the expiry times of a fresh entry, and extends its lifetime. Does not check whether
-- the entry was invalidated.
-- KEYS  entry
-- ARGV  version of the format, offset of the expiry times, the expiry times, lifetime (ms)
-- Reply 1, or 0 if there is no entry of this format, or it has expired
-- Cost  GETRANGE twice, TIME, SETRANGE, PEXPIRE; O(1)
if string.byte(redis.call('GETRANGE', KEYS[1], 0, 0)) ~= tonumber(ARGV[1]) then return 0 end
local first = tonumber(ARGV[2])
local ends = redis.call('GETRANGE', KEYS[1], first, first + 7)
if #ends < 8 then return 0 end
local fresh_until, place = 0, 1
for n = 1, 8 do
  fresh_until = fresh_until + string.byte(ends, n) * place
  place = place * 256
end
local time = redis.call('TIME')
if fresh_until <= tonumber(time[1]) * 1000000 + tonumber(time[2]) then return 0 end
redis.call('SETRANGE', KEYS[1], ARGV[2], ARGV[3])
return redis.call('PEXPIRE', KEYS[1], ARGV[4])
