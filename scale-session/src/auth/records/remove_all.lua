-- KEYS[1]: an owner's records. Removes all of them and returns how many there were.
local count = redis.call('HLEN', KEYS[1])
redis.call('DEL', KEYS[1])
return count
