-- Notes how a job of a batch ended. Two bits a job say what is known of it: whether it is done, whether it is dead.
-- KEYS  batch, done bits, dead bits
-- ARGV  number, 1 if it is done (0: dead)
-- Reply nil if there is no such batch, or total, done, dead, 1 if it is cancelled, 1 if what follows it is stored
-- Cost  O(1)
local batch, number, done = KEYS[1], tonumber(ARGV[1]), ARGV[2] == '1'
local total, life, followed = unpack(redis.call('HMGET', batch, 'total', 'life', 'followed'))
if not total then return nil end
if not followed and number < tonumber(total) and redis.call('GETBIT', KEYS[2], number) == 0 then
  if done then
    redis.call('SETBIT', KEYS[2], number, 1)
    redis.call('HINCRBY', batch, 'done', 1)
    if redis.call('SETBIT', KEYS[3], number, 0) == 1 then redis.call('HINCRBY', batch, 'dead', -1) end
  elseif redis.call('SETBIT', KEYS[3], number, 1) == 0 then
    redis.call('HINCRBY', batch, 'dead', 1)
    if redis.call('HGET', batch, 'lenient') == '0' then redis.call('HSET', batch, 'cancelled', 1) end
  end
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, life) end
end
local now = redis.call('HMGET', batch, 'done', 'dead', 'cancelled')
return { tonumber(total), tonumber(now[1] or 0), tonumber(now[2] or 0), tonumber(now[3] or 0), tonumber(followed or 0) }
