-- Writes a ban or lifts one.
-- KEYS  the log, a stream; the operators' bans, a hash
-- ARGV  operator, rule or lifted; subject; duration (ms); reason; maximum number of operators' bans
-- Reply 1, or 0 if the maximum number of operators' bans is reached
-- Cost  one TIME, one HGET, one HSET, one XADD; if the hash is full, one HGETALL
local by, subject, ms, reason = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if by == 'operator' then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local known = redis.call('HGET', KEYS[2], subject)
  if known then
    -- The longer ban is kept.
    if struct.unpack('>d', known) >= now + ms then return 1 end
  elseif redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[5]) then
    local kept = redis.call('HGETALL', KEYS[2])
    for i = 1, #kept, 2 do
      if struct.unpack('>d', kept[i + 1]) <= now then redis.call('HDEL', KEYS[2], kept[i]) end
    end
    if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[5]) then return 0 end
  end
  redis.call('HSET', KEYS[2], subject, struct.pack('>d', now + ms) .. reason)
elseif by == 'lifted' then
  redis.call('HDEL', KEYS[2], subject)
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 100000, '*', 'by', by, 'subject', subject, 'ms', ARGV[3], 'reason', reason)
return 1
