-- Replaces a record if it still equals the old one.
-- KEYS  an owner's records
-- ARGV  id, the old record, the new one
-- Reply 'done', 'changed' or 'gone'
-- Cost  HGET, HSET; O(1)
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held then return 'gone' end
local ends = string.match(held, '^%d+:')
if not ends or string.sub(held, #ends + 1) ~= ARGV[2] then return 'changed' end
redis.call('HSET', KEYS[1], ARGV[1], ends .. ARGV[3])
return 'done'
