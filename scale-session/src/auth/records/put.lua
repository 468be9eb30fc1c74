-- Adds a record of an owner; removes expired records.
-- KEYS  an owner's records
-- ARGV  id, record, lifetime (ms; 0: unlimited), maximum number of the owner's records
-- Reply 1, or 0 if the owner already has that many other records
-- Cost  HGETALL, HDEL, HSET; O(records of the owner)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held, others = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #held, 2 do
  local ends = tonumber(string.match(held[i + 1], '^(%d+):') or 0)
  if ends > 0 and ends <= now then
    redis.call('HDEL', KEYS[1], held[i])
  elseif held[i] ~= ARGV[1] then
    others = others + 1
  end
end
if others >= tonumber(ARGV[4]) then return 0 end
local keep, left = tonumber(ARGV[3]), redis.call('PTTL', KEYS[1])
local ends = keep > 0 and string.format('%.0f', now + keep) or '0'
redis.call('HSET', KEYS[1], ARGV[1], ends .. ':' .. ARGV[2])
-- The key lives as long as its longest-lived record.
if keep == 0 or left == -1 and others > 0 then
  redis.call('PERSIST', KEYS[1])
elseif keep > left then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
