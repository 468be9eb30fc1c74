-- Leaves a pointer in place of a session that moves to a new id, if it holds what the new one was made of.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  the new handle, grace (ms), the old handle's hash, then the fields expected: field and value by turns
-- Reply {'done'}; what the hash holds instead, field and value by turns; empty if it is gone or has moved already
-- Cost  HGETALL, DEL, HSET, PEXPIRE; O(fields)
if revoked() then return {} end
local held = redis.call('HGETALL', KEYS[1])
local expected, missing = {}, 0
for i = 4, #ARGV, 2 do
  expected[ARGV[i]] = ARGV[i + 1]
  missing = missing + 1
end
local same = true
for i = 1, #held, 2 do
  if held[i] == '\0moved' then return {} end
  if string.byte(held[i]) ~= 0 then
    same = same and expected[held[i]] == held[i + 1]
    missing = missing - 1
  end
end
if #held == 0 then return {} end
if not same or missing ~= 0 then return held end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '\0moved', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[3]) end
return { 'done' }
