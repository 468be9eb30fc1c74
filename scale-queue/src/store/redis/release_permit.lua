-- Releases a permit.
-- KEYS  holders by the expiry of their permit, queues that have a line for the key
-- ARGV  holder
-- Reply queues that have a line, at most 100, each with the score of its record
-- Cost  O(log holders)
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('ZRANGE', KEYS[2], 0, 99, 'WITHSCORES')
