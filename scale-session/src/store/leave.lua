-- Leaves a pointer in place of a session that moves to a new id.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  the new handle, grace (ms), the old handle's hash
-- Reply what the hash held, field and value by turns; empty if it is gone or has moved already
-- Cost  HGETALL, DEL, HSET, PEXPIRE; O(fields)
if revoked() then return {} end
local held = redis.call('HGETALL', KEYS[1])
for i = 1, #held, 2 do
  if held[i] == '\0moved' then return {} end
end
if #held > 0 then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], '\0moved', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[3]) end
end
return held
