-- Releases a unique key, if the job still holds it.
-- KEYS  unique key
-- ARGV  the job's tag
-- Reply 1 if it was released, else 0
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
