-- Makes a session readable for a grace period, and no longer writable, because its client has a new
-- session.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  grace period (ms), time for which it stays known afterwards (ms), hash of the family, handle of
--       the new session
-- Reply its content, alternately field and value, as one MessagePack array; '' if the session is
--       gone, or its grace period is over
-- Cost  HGETALL, HSET, PEXPIRE; O(fields)
if revoked() then return '' end
local held = redis.call('HGETALL', KEYS[1])
if #held == 0 then return '' end
local now, until_ms = clock(), redis.call('HGET', KEYS[1], '\0frozen')
if until_ms then return tonumber(until_ms) > now and cmsgpack.pack(held) or '' end
freeze(now, tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[4])
if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[3]) end
return cmsgpack.pack(held)
