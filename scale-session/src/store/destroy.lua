-- Removes a session, or the pointer a rotation left.
-- KEYS  the session's hash
-- Reply the handle it pointed to, or nil
-- Cost  HGET, UNLINK; O(1)
local moved = redis.call('HGET', KEYS[1], '\0moved')
redis.call('UNLINK', KEYS[1])
return moved
