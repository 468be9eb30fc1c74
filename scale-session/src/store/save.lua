-- Writes the changed fields of an existing session; renews it on request.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  idle timeout (ms; 0: leave it unchanged), grace period of proofs before the last rotation (ms),
--       hash of the family, number of fields to set, alternately field and value, then fields to remove
-- Reply 'done'; 'gone' or 'frozen' (then nothing is written)
-- Cost  HMGET, HSET, HDEL; to renew, also TIME, HSET, PEXPIRE; O(changed fields)
if revoked() then return 'gone' end
local meta = redis.call('HMGET', KEYS[1], '\0ends', '\0frozen', '\0proofs')
if not meta[1] then return 'gone' end
if meta[2] then return 'frozen' end
local idle = tonumber(ARGV[1])
if idle > 0 then
  local now = clock()
  local left = math.min(idle, tonumber(meta[1]) - now)
  if left <= 0 then
    redis.call('DEL', KEYS[1])
    return 'gone'
  end
  redis.call('HSET', KEYS[1], '\0renewed', now, '\0seen', 1)
  -- The client has sent the last proof: from now on the grace period of the earlier ones runs.
  if string.find(meta[3], '@?', 1, true) then
    redis.call('HSET', KEYS[1], '\0proofs', (string.gsub(meta[3], '@%?', '@' .. string.format('%d', now + tonumber(ARGV[2])))))
  end
  redis.call('PEXPIRE', KEYS[1], left)
  if KEYS[2] then
    redis.call('ZADD', KEYS[3], now + left, ARGV[3])
    longer(KEYS[3], left)
  end
end
local last = 4 + 2 * tonumber(ARGV[4])
-- In chunks that fit on Lua's stack.
for i = 5, last, 200 do
  redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 199, last)))
end
for i = last + 1, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
return 'done'
