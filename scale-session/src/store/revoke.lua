-- Ends all sessions of an owner, except one if given.
-- KEYS  hash of the exception (or the owner's hash, if there is none), the owner's hash, the owner's
--       sessions
-- ARGV  hash of the exception, or ''
-- Reply 1, or 0 if the exception is not a live session of the owner: then nothing is changed
-- Cost  O(1); the list of sessions is removed in the background
local life = redis.call('HGET', KEYS[2], 'life')
if not life then return ARGV[1] == '' and 1 or 0 end
local keep = ARGV[1] ~= ''
if keep and (revoked() or redis.call('HEXISTS', KEYS[1], '\0turn') == 0 or redis.call('HEXISTS', KEYS[1], '\0frozen') == 1) then return 0 end
local score = keep and redis.call('ZSCORE', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[2], 'revoked', redis.call('HINCRBY', KEYS[2], 'last', 1))
redis.call('UNLINK', KEYS[3])
if keep then
  redis.call('HSET', KEYS[1], '\0turn', life .. ':' .. redis.call('HINCRBY', KEYS[2], 'last', 1))
  if score then
    redis.call('ZADD', KEYS[3], score, ARGV[1])
    redis.call('PEXPIREAT', KEYS[3], string.format('%.0f', score))
  end
end
return 1
