-- Leaves a mark of the present moment, unless the store has to be settled first.
-- KEYS  mark
-- ARGV  the servers for which the caller knows the store to be whole
-- Reply 1, or 0 if the mark is of other servers
-- Cost  GET, TIME, and SET twenty times a second at most; O(1)
local mark = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
if mark then
  local servers, at = string.match(mark, '^(%S+) (%d+)$')
  if servers ~= ARGV[1] then return 0 end
  if now >= tonumber(at) and now - tonumber(at) < 50000 then return 1 end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. string.format('%.0f', now))
return 1
