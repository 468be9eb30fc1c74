-- Reads the bans and lifted bans after the last entry read.
-- KEYS  the log, a stream
-- ARGV  id of the last entry read; 0 for all
-- Reply state of the log: 0 continued, 1 read for the first time, 2 lost, 3 trimmed before it was read;
--       for each entry, oldest first and 1,000 at most: id, operator or rule or lifted, subject, ms
--       left by this server's clock, reason
-- Cost  two XRANGE of one entry, one XRANGE, sometimes one XLEN; O(entries)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last, missed = ARGV[1], 0
local function number(id) return tonumber(string.match(id, '^(%d+)')) end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
-- A log that was lost, that continues with another server's clock, or that was trimmed beyond the
-- last entry read, is read from its start.
if last == '0' then
  missed = 1
elseif not newest or number(newest[1]) < number(last) then
  last, missed = '0', 2
elseif number(oldest[1]) > number(last) then
  -- A log that is not full is never trimmed: this is another log.
  last, missed = '0', redis.call('XLEN', KEYS[1]) < 100000 and 2 or 3
end
local from = last == '0' and '-' or '(' .. last
local rows = {}
for i, entry in ipairs(redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1000)) do
  local fields = entry[2]
  local left = number(entry[1]) + tonumber(fields[6]) - now
  rows[i] = { entry[1], fields[2], fields[4], left, fields[8] }
end
return { missed, rows }
