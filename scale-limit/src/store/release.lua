-- Releases permits.
-- KEYS  hash of one policy's permits
-- ARGV  the permits
-- Reply number of permits that were still held
-- Cost  one HGET and one HDEL for each permit
local head = redis.call('HGET', KEYS[1], '')
if not head then return 0 end
local held, first = struct.unpack('>dd', head)
local freed = 0
for i = 1, #ARGV do
  local bytes = redis.call('HGET', KEYS[1], ARGV[i])
  if bytes then
    local _, weight = struct.unpack('>dd', bytes)
    redis.call('HDEL', KEYS[1], ARGV[i])
    held, freed = held - weight, freed + 1
  end
end
if held <= 0 then
  redis.call('DEL', KEYS[1])
elseif freed > 0 then
  redis.call('HSET', KEYS[1], '', struct.pack('>dd', held, first))
end
return freed
