-- Removes all records of an owner.
-- KEYS  an owner's records
-- Reply number of removed records
-- Cost  UNLINK
local count = redis.call('HLEN', KEYS[1])
redis.call('UNLINK', KEYS[1])
return count
