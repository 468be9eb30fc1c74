-- Reads some of the operators' bans, and removes expired ones.
-- KEYS  the operators' bans, a hash
-- ARGV  cursor; 0 for the beginning
-- Reply next cursor, 0 at the end; for each ban: subject, ms left by this server's clock, reason
-- Cost  one HSCAN of 1,000
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local scanned = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 1000)
local rows = {}
for i = 1, #scanned[2], 2 do
  local subject, ban = scanned[2][i], scanned[2][i + 1]
  local left = struct.unpack('>d', ban) - now
  if left <= 0 then
    redis.call('HDEL', KEYS[1], subject)
  else
    rows[#rows + 1] = { subject, math.floor(left), string.sub(ban, 9) }
  end
end
return { scanned[1], rows }
