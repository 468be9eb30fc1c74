-- Adds to a numeric field: a version byte, then MessagePack.
-- KEYS  the session's hash [, the owner's hash, the owner's sessions]
-- ARGV  field, summand, version byte
-- Reply {'done', sum}, {'gone'}, {'frozen'}, or {'other'} if the field holds no number, or a number
--       that Lua cannot hold exactly
-- Cost  HMGET, HSET; O(1)
if revoked() then return { 'gone' } end
local found = redis.call('HMGET', KEYS[1], '\0ends', '\0frozen', ARGV[1])
if not found[1] then return { 'gone' } end
if found[2] then return { 'frozen' } end
local number = 0
if found[3] then
  -- Two type markers of MessagePack are those of floating-point numbers.
  local mark = string.byte(found[3], 2)
  if string.sub(found[3], 1, 1) ~= ARGV[3] or mark == 202 or mark == 203 then return { 'other' } end
  local fine, held = pcall(cmsgpack.unpack, string.sub(found[3], 2))
  if not fine or type(held) ~= 'number' or held ~= math.floor(held) then return { 'other' } end
  number = held
end
local sum = number + tonumber(ARGV[2])
local most = 9007199254740991
if math.abs(number) > most or math.abs(sum) > most or math.abs(tonumber(ARGV[2])) > most then return { 'other' } end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. cmsgpack.pack(sum))
return { 'done', string.format('%.0f', sum) }
