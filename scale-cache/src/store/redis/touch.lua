-- Writes an entry's ends anew, and keeps it so long. Whether it is worth anything is not asked.
-- KEYS  entry
-- ARGV  the format's version, where the ends stand, the ends, how long to keep (ms)
-- Reply 1, or 0 if there is no entry of this format
-- Cost  GETRANGE, SETRANGE, PEXPIRE; O(1)
if string.byte(redis.call('GETRANGE', KEYS[1], 0, 0)) ~= tonumber(ARGV[1]) then return 0 end
redis.call('SETRANGE', KEYS[1], ARGV[2], ARGV[3])
return redis.call('PEXPIRE', KEYS[1], ARGV[4])
