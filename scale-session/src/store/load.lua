-- A session of which more must be known than its hash alone tells: whether it is revoked, and what the time is.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- Reply what the hash holds and '\0now' (ms), field and value by turns, as one MessagePack array: a client reads one value faster than
--       twenty; empty if it is gone or revoked
-- Cost  HGET, HMGET, HGETALL; O(fields)
if revoked() then return '' end
local held = redis.call('HGETALL', KEYS[1])
if #held == 0 then return '' end
held[#held + 1] = '\0now'
held[#held + 1] = string.format('%d', clock())
return cmsgpack.pack(held)
