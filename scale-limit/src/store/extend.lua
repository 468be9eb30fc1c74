-- Renews permits.
-- KEYS  hash of one policy's permits
-- ARGV  lifetime of a permit (us); then the permits
-- Reply number of permits that were still held
-- Cost  one TIME, one HGET and one HSET for each permit
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local hold, held = tonumber(ARGV[1]), 0
for i = 2, #ARGV do
  local bytes = redis.call('HGET', KEYS[1], ARGV[i])
  if bytes then
    redis.call('HSET', KEYS[1], ARGV[i], struct.pack('>d', now + hold) .. string.sub(bytes, 9))
    held = held + 1
  end
end
if held > 0 then redis.call('PEXPIRE', KEYS[1], string.format('%d', math.ceil(hold / 1000))) end
return held
