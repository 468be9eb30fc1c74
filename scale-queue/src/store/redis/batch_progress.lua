-- Records how a job of a batch ended. Two bits per job: whether it is done, and whether it is dead.
-- KEYS  batch, done bits, dead bits
-- ARGV  number, 'done', 'dead' or 'skipped' (counts as done; a dead job stays dead)
-- Reply nil if the batch is unknown, or total, done, dead, 1 if the batch is cancelled, 1 if the
--       jobs that follow it are stored, 1 if jobs were skipped because one had died
-- Cost  O(1)
local batch, number, ending = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local total, life, followed = unpack(redis.call('HMGET', batch, 'total', 'life', 'followed'))
if not total then return nil end
if not followed and number < tonumber(total) and redis.call('GETBIT', KEYS[2], number) == 0 then
  if ending == 'dead' then
    if redis.call('SETBIT', KEYS[3], number, 1) == 0 then
      redis.call('HINCRBY', batch, 'dead', 1)
      -- 2: by a death, not by a request.
      if redis.call('HGET', batch, 'lenient') == '0' then redis.call('HSETNX', batch, 'cancelled', 2) end
    end
  elseif ending == 'done' or redis.call('GETBIT', KEYS[3], number) == 0 then
    redis.call('SETBIT', KEYS[2], number, 1)
    redis.call('HINCRBY', batch, 'done', 1)
    if redis.call('SETBIT', KEYS[3], number, 0) == 1 then redis.call('HINCRBY', batch, 'dead', -1) end
    if ending == 'skipped' and redis.call('HGET', batch, 'cancelled') == '2' then redis.call('HSET', batch, 'skipped', 1) end
  end
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, life) end
end
local now = redis.call('HMGET', batch, 'done', 'dead', 'cancelled', 'skipped')
return { tonumber(total), tonumber(now[1] or 0), tonumber(now[2] or 0), tonumber(now[3] or 0), tonumber(followed or 0), tonumber(now[4] or 0) }
