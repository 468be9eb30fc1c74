-- Frees a unique key, if this job still holds it.
-- KEYS  the key
-- ARGV  the job's id
-- Reply 1 or 0
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
