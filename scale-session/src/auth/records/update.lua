-- KEYS[1]: an owner's records. ARGV: id, record. Replaces it only if it is there.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
