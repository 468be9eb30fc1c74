-- Creates a session.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  idle timeout (ms), maximum age (ms), hash of the family, a random text, the proof, then
--       alternately field and value
-- Reply 1
-- Cost  TIME, HSET, PEXPIRE; O(fields); with an owner also O(log of the owner's sessions)
local now = clock()
local idle, absolute = tonumber(ARGV[1]), tonumber(ARGV[2])
local left = math.min(idle, absolute)
redis.call('HSET', KEYS[1], '\0ends', now + absolute, '\0renewed', now, '\0proofs', ARGV[5])
-- In chunks that fit on Lua's stack.
for i = 6, #ARGV, 200 do
  redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 199, #ARGV)))
end
redis.call('PEXPIRE', KEYS[1], left)
if KEYS[2] then
  redis.call('HSETNX', KEYS[2], 'life', ARGV[4])
  redis.call('HSET', KEYS[1], '\0turn', redis.call('HGET', KEYS[2], 'life') .. ':' .. redis.call('HINCRBY', KEYS[2], 'last', 1))
  -- The owner's hash outlives the session, so that a revocation stays known.
  longer(KEYS[2], absolute + 1000)
  -- The session is listed after its client has sent its cookie.
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
end
return 1
