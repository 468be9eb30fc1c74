-- Removes a session, or the pointer a rotation left.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  the handle's hash
-- Reply the handle it pointed to, or nil
-- Cost  HGET, UNLINK; O(1)
local moved = redis.call('HGET', KEYS[1], '\0moved')
redis.call('UNLINK', KEYS[1])
if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[1]) end
return moved
