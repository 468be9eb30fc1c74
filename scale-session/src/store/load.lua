-- A session that belongs to somebody.
-- KEYS  the session's hash, the owner's hash, the owner's sessions
-- Reply what the hash holds, field and value by turns; empty if it is gone or revoked
-- Cost  HGET, HMGET, HGETALL; O(fields)
if revoked() then return {} end
return redis.call('HGETALL', KEYS[1])
