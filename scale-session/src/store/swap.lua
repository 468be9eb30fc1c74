-- Writes one field if it still has the expected value.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  field, 1 if a value is expected, expected value, 1 if a value is to be set, new value
-- Reply {'done'}, {'gone'}, {'frozen'}, {'found'} (the field is absent) or {'found', value}
-- Cost  HMGET and one HSET or HDEL; O(1)
if revoked() then return { 'gone' } end
local found = redis.call('HMGET', KEYS[1], '\0ends', '\0frozen', ARGV[1])
if not found[1] then return { 'gone' } end
if found[2] then return { 'frozen' } end
local expected = ARGV[2] == '1' and ARGV[3] or false
if found[3] ~= expected then
  return found[3] and { 'found', found[3] } or { 'found' }
end
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[5])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return { 'done' }
