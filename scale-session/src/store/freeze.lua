-- Lets a session be read for a while and not be written any more, since its client has another one now.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  how long it may be read (ms), how long it is known after that (ms), the family's hash, the handle of the other one
-- Reply what it holds, field and value by turns, as one MessagePack array; '' if it is gone, or its while is over
-- Cost  HGETALL, HSET, PEXPIRE; O(fields)
if revoked() then return '' end
local held = redis.call('HGETALL', KEYS[1])
if #held == 0 then return '' end
local now, until_ms = clock(), redis.call('HGET', KEYS[1], '\0frozen')
if until_ms then return tonumber(until_ms) > now and cmsgpack.pack(held) or '' end
freeze(now, tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[4])
if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[3]) end
return cmsgpack.pack(held)
