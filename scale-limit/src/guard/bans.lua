-- Reads bans made since the last one read.
-- KEYS  the log, a stream
-- ARGV  the id of the last entry read; 0 for all
-- Reply for each entry, oldest first and 1,000 at most: id, subject, ms left by this server's clock, reason
-- Cost  one XREVRANGE of one entry, one XRANGE; O(entries)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = ARGV[1]
local function number(id) return tonumber(string.match(id, '^(%d+)')) end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
-- A log that has been lost, or goes on behind another server's clock, is read from its start.
if not newest or number(newest[1]) < number(last) then last = '0' end
local from = last == '0' and '-' or '(' .. last
local rows = {}
for i, entry in ipairs(redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1000)) do
  local fields = entry[2]
  local left = number(entry[1]) + tonumber(fields[4]) - now
  rows[i] = { entry[1], fields[2], tonumber(fields[4]) > 0 and left or 0, fields[6] }
end
return rows
