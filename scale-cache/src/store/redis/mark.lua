-- Records the servers for which the store is known to be complete, with the current time. A server
-- that is not among them is left unchanged: the caller meant another server.
-- KEYS  mark
-- ARGV  the servers, 1 to complete a repair (whatever the mark contains) or 0, time of the data loss
--       before the repair (us)
-- Reply 1; 0 if nothing was recorded; 2 if the mark is missing
-- Cost  GET and TIME, and INFO, DEL and SET twenty times a second at most; O(1)
local mark = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now, since = tonumber(time[1]) * 1000000 + tonumber(time[2]), ARGV[3]
-- The mark is missing, so other data may be missing too.
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
-- DEL comes first: a full Redis lets a script finish after its first write command.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. string.format('%.0f', now) .. ' ' .. since)
return 1
