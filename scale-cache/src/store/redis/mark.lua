-- Says for which servers the store is known to be whole, and that it is so now. A server that is none of them is told nothing: the
-- caller meant another one.
-- KEYS  mark
-- ARGV  the servers, 1 to settle (whatever the mark says) or 0, since when something was lost before they were settled (us)
-- Reply 1; 0 if nothing was said; 2 if there is no mark any more
-- Cost  GET and TIME, and INFO, DEL and SET twenty times a second at most; O(1)
local mark = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now, since = tonumber(time[1]) * 1000000 + tonumber(time[2]), ARGV[3]
-- Everything is gone: nobody knows what else.
if not mark and ARGV[2] == '0' then return 2 end
if mark and ARGV[2] == '0' then
  local servers, at, lost = string.match(mark, '^(%S+) (%d+) (%d+)$')
  if servers ~= ARGV[1] then return 0 end
  if now >= tonumber(at) and now - tonumber(at) < 50000 then return 1 end
  since = lost
end
local info = redis.pcall('INFO', 'all')
if type(info) == 'string' then
  local server, history = string.match(info, 'run_id:(%w+)'), string.match(info, 'master_replid:(%w+)')
  if server and history and not string.find(ARGV[1], server .. '/' .. history, 1, true) then return 0 end
end
-- A removal first: a full store lets a script finish that has begun to write.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. string.format('%.0f', now) .. ' ' .. since)
return 1
