-- Removes a session. A replaced session loses only its readable content: the fact that it was
-- replaced is kept.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  hash of the family, time for which the session's existence stays known (ms)
-- Reply {'done'}, {'gone'}, or {'frozen', handle of the session that replaced it}
-- Cost  HDEL or UNLINK, ZREM; O(fields + log of the owner's sessions)
local held = redis.call('HMGET', KEYS[1], '\0proofs', '\0frozen', '\0next')
if held[2] and not held[3] then return { 'gone' } end
if KEYS[2] and not held[2] then redis.call('ZREM', KEYS[3], ARGV[1]) end
if not held[1] then return { 'gone' } end
if held[2] or tonumber(ARGV[2]) > 0 then
  empty()
  if held[2] then return { 'frozen', held[3] } end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('UNLINK', KEYS[1])
end
return { 'done' }
