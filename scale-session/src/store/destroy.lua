-- Removes a session.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  the family's hash
-- Reply 1, or 0 if there is none
-- Cost  UNLINK, ZREM; O(log of the owner's sessions)
if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[1]) end
return redis.call('UNLINK', KEYS[1])
