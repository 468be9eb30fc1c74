-- Holds on to the right to load. One that was taken away is not taken again: what is being loaded may be from before a removal.
-- KEYS  the key's lease
-- ARGV  token, lease (ms)
-- Reply whether the right still stands (0/1)
-- Cost  GET and PEXPIRE; O(1)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
