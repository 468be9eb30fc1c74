-- Loads a session together with its revocation state and the server's time.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- Reply the content of the hash and '\0now' (ms), alternately field and value, as one MessagePack
--       array: a client reads one value faster than twenty; empty if the session is gone or revoked
-- Cost  HGET, HMGET, HGETALL; O(fields)
if revoked() then return '' end
local held = redis.call('HGETALL', KEYS[1])
if #held == 0 then return '' end
held[#held + 1] = '\0now'
held[#held + 1] = string.format('%d', clock())
return cmsgpack.pack(held)
