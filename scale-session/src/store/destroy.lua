-- Removes a session. Of one that was replaced only what may be read goes: that it was replaced stays known.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  the family's hash
-- Reply {'done'}, {'gone'}, or {'frozen', the handle of the one in its place}
-- Cost  UNLINK, ZREM; O(log of the owner's sessions)
local held = redis.call('HMGET', KEYS[1], '\0frozen', '\0next')
if held[1] then
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.byte(field) ~= 0 then redis.call('HDEL', KEYS[1], field) end
  end
  redis.call('HSET', KEYS[1], '\0frozen', 0)
  return { 'frozen', held[2] or '' }
end
if KEYS[2] then redis.call('ZREM', KEYS[3], ARGV[1]) end
return { redis.call('UNLINK', KEYS[1]) == 1 and 'done' or 'gone' }
