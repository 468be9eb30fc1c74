-- Makes a session.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  idle (ms), absolute (ms), the family's hash, a random text, the proof, then field and value by turns
-- Reply 1
-- Cost  TIME, HSET, PEXPIRE; O(fields); with an owner O(log of their sessions) more
local now = clock()
local idle, absolute = tonumber(ARGV[1]), tonumber(ARGV[2])
local left = math.min(idle, absolute)
redis.call('HSET', KEYS[1], '\0ends', now + absolute, '\0renewed', now, '\0proofs', ARGV[5])
-- So many that Lua's stack holds them.
for i = 6, #ARGV, 200 do
  redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 199, #ARGV)))
end
redis.call('PEXPIRE', KEYS[1], left)
if KEYS[2] then
  redis.call('HSETNX', KEYS[2], 'life', ARGV[4])
  redis.call('HSET', KEYS[1], '\0turn', redis.call('HGET', KEYS[2], 'life') .. ':' .. redis.call('HINCRBY', KEYS[2], 'last', 1))
  -- What is revoked is known for as long as any session may live.
  longer(KEYS[2], absolute + 1000)
  -- It is listed once its client has sent its cookie.
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
end
return 1
