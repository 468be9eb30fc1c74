-- Advances a family by one turn.
-- KEYS  the family's hash
-- ARGV  the turn, grace period (ms), maximum number of turns to lag behind
-- Reply number of the next turn, 'repeated' (the family is removed) or 'gone'
-- Cost  TIME, HMGET and one write; O(1)
local family = redis.call('HMGET', KEYS[1], 'next', 'taken')
if not family[1] then return 'gone' end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local turn, next = tonumber(ARGV[1]), tonumber(family[1])
if turn == next then
  redis.call('HSET', KEYS[1], 'next', turn + 1, 'taken', now)
  return tostring(turn + 1)
end
if turn < next and next - turn <= tonumber(ARGV[3]) and now - tonumber(family[2]) <= tonumber(ARGV[2]) then return tostring(next) end
if turn < next then
  redis.call('DEL', KEYS[1])
  return 'repeated'
end
return 'gone'
