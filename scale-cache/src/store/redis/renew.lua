-- Extends a lease. A lease that was lost is not acquired again: the value being loaded may be older
-- than a removal.
-- KEYS  the key's lease
-- ARGV  token, lease (ms)
-- Reply whether the lease is still held (0/1)
-- Cost  GET and PEXPIRE; O(1)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
