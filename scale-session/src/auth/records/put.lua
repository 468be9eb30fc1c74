-- KEYS[1]: an owner's records. ARGV: id, record, how long it is kept (ms; 0: for ever).
-- The key is kept as long as its record that is kept longest.
local keep, left = tonumber(ARGV[3]), redis.call('PTTL', KEYS[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if keep == 0 or left == -1 then
  redis.call('PERSIST', KEYS[1])
elseif keep > left then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
