-- A session of which its owner's word leaves a doubt.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- Reply what the hash holds, field and value by turns, as one MessagePack array: a client reads one value faster than twenty; empty if it is
--       gone or revoked
-- Cost  HGET, HMGET, HGETALL; O(fields)
if revoked() then return '' end
local held = redis.call('HGETALL', KEYS[1])
return #held > 0 and cmsgpack.pack(held) or ''
