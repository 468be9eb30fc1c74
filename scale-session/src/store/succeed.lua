-- Creates the session that replaces an old one after the user has confirmed their identity, and
-- freezes the old session, in one step. The new session ends when the old one would have ended, and
-- is revoked together with it.
-- KEYS  the old session's hash, the owner's hash, the owner's sessions, the new session's hash
-- ARGV  the new proof, idle timeout (ms), grace period (ms), time for which the old session stays known
--       afterwards (ms), hash of the old family, the new handle, number of fields to set, alternately
--       field and value, then fields to remove
-- Reply 'done', 'frozen' or 'gone'
-- Cost  HGETALL, HSET, PEXPIRE; O(fields + log of the owner's sessions)
if revoked() then return 'gone' end
local held = redis.call('HGETALL', KEYS[1])
if #held == 0 then return 'gone' end
local now = clock()
local ends, turn
for i = 1, #held, 2 do
  if held[i] == '\0frozen' then return 'frozen' end
  if held[i] == '\0ends' then ends = tonumber(held[i + 1]) end
  if held[i] == '\0turn' then turn = held[i + 1] end
end
local left = math.min(tonumber(ARGV[2]), ends - now)
if not turn or left <= 0 then return 'gone' end
for i = 1, #held, 2 do
  if string.byte(held[i]) ~= 0 then redis.call('HSET', KEYS[4], held[i], held[i + 1]) end
end
local last = 7 + 2 * tonumber(ARGV[7])
for i = 8, last, 2 do redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
for i = last + 1, #ARGV do redis.call('HDEL', KEYS[4], ARGV[i]) end
redis.call('HSET', KEYS[4], '\0ends', string.format('%d', ends), '\0renewed', now, '\0proofs', ARGV[1], '\0turn', turn)
redis.call('PEXPIRE', KEYS[4], string.format('%d', left))
freeze(now, tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[6])
redis.call('ZREM', KEYS[3], ARGV[5])
longer(KEYS[2], tonumber(ARGV[3]) + tonumber(ARGV[4]) + 1000)
return 'done'
