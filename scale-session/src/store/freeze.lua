-- Lets a session be read for a while and not be written any more, since its client has another one now.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  how long it may be read (ms), how long it is known after that (ms), the family's hash
-- Reply what it holds, field and value by turns, as one MessagePack array; '' if it is gone, or its while is over
-- Cost  HGETALL, HSET, PEXPIRE; O(fields)
if revoked() then return '' end
local now = clock()
local until_ms = redis.call('HGET', KEYS[1], '\0frozen')
if until_ms and tonumber(until_ms) <= now then return '' end
local held = redis.call('HGETALL', KEYS[1])
if #held == 0 then return '' end
if not until_ms then
  redis.call('HSET', KEYS[1], '\0frozen', string.format('%d', now + tonumber(ARGV[1])))
  redis.call('PEXPIRE', KEYS[1], string.format('%d', tonumber(ARGV[1]) + tonumber(ARGV[2])))
  if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[3]) end
end
return cmsgpack.pack(held)
