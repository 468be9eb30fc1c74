-- Removes the record that a queue has a line, unless it was recorded again since.
-- KEYS  queues that have a line for the key
-- ARGV  queue, score of the record
-- Reply 1 or 0
-- Cost  O(log queues)
local said = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not said or tonumber(said) ~= tonumber(ARGV[2]) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
